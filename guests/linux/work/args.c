// Arguments: words of the form name=value.
#include "work.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_ARGS = 128 };

static char *words[MAX_ARGS];
static size_t word_count;

static void add(char *word) {
    if (word_count < MAX_ARGS && strchr(word, '=')) words[word_count++] = word;
}

void args_from_file(const char *path) {
    static char text[PAGE];
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) fail("%s: %s", path, strerror(errno));
    ssize_t bytes = read(file, text, sizeof text - 1);
    close(file);
    if (bytes < 0) fail("%s: %s", path, strerror(errno));
    text[bytes] = 0;
    char *rest = text;
    for (char *word; (word = strsep(&rest, " \n"));) add(word);
}

void args_from_argv(int count, char **values) {
    for (int i = 1; i < count; i++) add(values[i]);
}

// The last one given counts, as for the kernel's own.
const char *arg(const char *name, const char *fallback) {
    size_t length = strlen(name);
    for (size_t i = word_count; i-- > 0;) {
        if (!strncmp(words[i], name, length) && words[i][length] == '=') return words[i] + length + 1;
    }
    return fallback;
}

u64 number(const char *name, u64 fallback, u64 least, u64 most) {
    const char *text = arg(name, NULL);
    if (!text) return fallback;
    char *end;
    errno = 0;
    u64 value = strtoull(text, &end, 10);
    if (errno || *text < '0' || *text > '9' || *end || value < least || value > most)
        fail("%s=%s is not a number from %lu to %lu", name, text, least, most);
    return value;
}
