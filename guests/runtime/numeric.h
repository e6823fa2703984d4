// Mathematics that is the same to the bit on every processor: IEEE operations in an order that is written down, and
// no library.
#ifndef SAMSARA_NUMERIC_H
#define SAMSARA_NUMERIC_H

#include "guest.h"

#define EPSILON 0x1p-52
#define QUARTER_PI 0x1.921fb54442d18p-1

static inline double absolute(double value) { return __builtin_fabs(value); }

static inline double square_root(double value) {
    double root;
    __asm__("sqrtsd %1, %0" : "=x"(root) : "x"(value));
    return root;
}

// Taylor series, exact to rounding for 0 <= x <= pi/4.
static inline double sine(double x) {
    double sum = 1.0, xx = x * x;
    for (int k = 16; k >= 2; k -= 2) sum = 1.0 - xx / (double)(k * (k + 1)) * sum;
    return x * sum;
}

static inline double cosine(double x) {
    double sum = 1.0, xx = x * x;
    for (int k = 17; k >= 1; k -= 2) sum = 1.0 - xx / (double)(k * (k + 1)) * sum;
    return sum;
}

#define LN2 0x1.62e42fefa39efp-1
// ln 2 in two parts; the first has so few bits that its product with any exponent is exact.
#define LN2_HIGH 0x1.62e42feep-1
#define LN2_LOW 0x1.a39ef35793c76p-33

// e^x for x <= 700. Below -700 it is 0: nobody here can tell that from e^-700.
static inline double exponential(double x) {
    if (x < -700.0) return 0.0;
    long power = (long)(x / LN2 + (x < 0 ? -0.5 : 0.5));
    double rest = (x - (double)power * LN2_HIGH) - (double)power * LN2_LOW, sum = 1.0;
    for (int k = 14; k >= 1; k--) sum = 1.0 + rest / (double)k * sum;
    u64 scale = (u64)(power + 1023) << 52;
    double two_to_power;
    __builtin_memcpy(&two_to_power, &scale, sizeof scale);
    return sum * two_to_power;
}

// The natural logarithm of a normal positive number: of its exponent, and of its mantissa by the series of artanh.
static inline double logarithm(double x) {
    u64 bits = bits_of(x), mantissa_bits = (bits & ((1ul << 52) - 1)) | 1023ul << 52;
    double exponent = (double)(bits >> 52) - 1023.0, mantissa;
    __builtin_memcpy(&mantissa, &mantissa_bits, sizeof mantissa);
    if (mantissa > 0x1.6a09e667f3bcdp0) {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    double ratio = (mantissa - 1.0) / (mantissa + 1.0), square = ratio * ratio, sum = 0.0;
    for (int k = 21; k >= 1; k -= 2) sum = 1.0 / (double)k + square * sum;
    return exponent * LN2_HIGH + (exponent * LN2_LOW + 2.0 * ratio * sum);
}

#endif
