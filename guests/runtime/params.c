// The parameter string: "key=value key=value". Keys and bounds come from the program's table.
#include "internal.h"

enum { SPIN };
static struct param common_params[] = {
    NUMBER("spin", 512, 0, 1ul << 20),
    PARAMS_END,
};

u64 spin_limit(void) { return common_params[SPIN].value; }

static u64 length(const char *text) {
    u64 n = 0;
    while (text[n]) n++;
    return n;
}

// Whether the `bytes` at `word` are exactly `text`.
static bool is_word(const char *word, u64 bytes, const char *text) {
    return length(text) == bytes && memcmp(word, text, bytes) == 0;
}

static const char *next_choice(const char *at, u64 *bytes) {
    u64 n = 0;
    while (at[n] && at[n] != '|') n++;
    *bytes = n;
    return at[n] ? at + n + 1 : NULL;
}

void param_choice(u64 index, u64 choice, char *name, u64 name_bytes) {
    const char *at = program_params[index].choices;
    u64 n = 0;
    name[0] = 0;
    for (u64 i = 0; at; i++) {
        const char *start = at;
        at = next_choice(at, &n);
        if (i != choice) continue;
        if (n >= name_bytes) n = name_bytes - 1;
        memcpy(name, start, n);
        name[n] = 0;
        return;
    }
}

static bool parse_choice(struct param *p, const char *word, u64 bytes) {
    const char *at = p->choices;
    u64 n;
    for (u64 i = 0; at; i++) {
        const char *start = at;
        at = next_choice(at, &n);
        if (n == bytes && memcmp(start, word, n) == 0) {
            p->value = i;
            return true;
        }
    }
    return false;
}

// A decimal number, with K, M or G behind it for 2^10, 2^20, 2^30.
static bool parse_number(struct param *p, const char *word, u64 bytes) {
    u64 value = 0, shift = 0;
    if (bytes > 1 && word[bytes - 1] == 'K') shift = 10;
    if (bytes > 1 && word[bytes - 1] == 'M') shift = 20;
    if (bytes > 1 && word[bytes - 1] == 'G') shift = 30;
    if (shift) bytes--;
    if (bytes == 0) return false;
    for (u64 i = 0; i < bytes; i++) {
        if (word[i] < '0' || word[i] > '9') return false;
        if (__builtin_mul_overflow(value, 10ul, &value)) return false;
        if (__builtin_add_overflow(value, (u64)(word[i] - '0'), &value)) return false;
    }
    if (shift && value >> (64 - shift)) return false;
    value <<= shift;
    if (value < p->low || value > p->high) return false;
    p->value = value;
    return true;
}

static struct param *find(const char *key, u64 bytes) {
    struct param *tables[] = {program_params, common_params};
    for (u64 t = 0; t < 2; t++)
        for (struct param *p = tables[t]; p->key; p++)
            if (is_word(key, bytes, p->key)) return p;
    return NULL;
}

static void describe(struct vcpu *cpu, const struct param *table) {
    for (; table->key; table++) {
        if (table->choices) {
            say(cpu, " %s=%s", table->key, table->choices);
        } else {
            say(cpu, " %s=%lu..%lu", table->key, table->low, table->high);
        }
    }
}

NORETURN static void refuse(struct vcpu *cpu, const char *item, u64 bytes, const char *reason) {
    say(cpu, "params: ");
    for (u64 i = 0; i < bytes && i < 64; i++) say(cpu, "%c", item[i] > ' ' && item[i] < 127 ? item[i] : '?');
    say(cpu, ": %s; accepted:", reason);
    describe(cpu, program_params);
    describe(cpu, common_params);
    say(cpu, "\n");
    exit_with(BAD_PARAMS);
}

static void parse_item(struct vcpu *cpu, const char *item, u64 bytes) {
    u64 key = 0;
    while (key < bytes && item[key] != '=') key++;
    if (key == bytes) refuse(cpu, item, bytes, "not key=value");
    struct param *p = find(item, key);
    if (!p) refuse(cpu, item, bytes, "unknown key");
    const char *word = item + key + 1;
    u64 word_bytes = bytes - key - 1;
    bool good = p->choices ? parse_choice(p, word, word_bytes) : parse_number(p, word, word_bytes);
    if (!good) refuse(cpu, item, bytes, "value not accepted");
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

void params_parse(struct vcpu *cpu, const char *text) {
    while (*text) {
        if (is_space(*text)) {
            text++;
            continue;
        }
        u64 bytes = 0;
        while (text[bytes] && !is_space(text[bytes])) bytes++;
        parse_item(cpu, text, bytes);
        text += bytes;
    }
}
