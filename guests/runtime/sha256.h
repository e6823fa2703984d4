// SHA-256 (FIPS 180-4).
#ifndef SAMSARA_SHA256_H
#define SAMSARA_SHA256_H

#include "guest.h"

#define DIGEST_BYTES 32

struct digest {
    u8 bytes[DIGEST_BYTES];
};

// The digest of the byte `prefix` followed by `data`.
struct digest sha256_prefixed(u8 prefix, const u8 *data, u64 bytes);

#endif
