/* BLAKE3's rounds for vectors of any width, one input per 32-bit lane.
 *
 * An includer defines ADD, XOR, ROR16, ROR12, ROR8 and ROR7, so that each instruction set spells only its own
 * instructions and the order of the words is written once (BLAKE3 paper, section 2.2, tables 1 and 2). The
 * four columns, then the four diagonals, are stepped together: each is a chain of its own, and one alone
 * would leave the adders idle.  */

#define ADD_WORDS(v, m, s, at) \
    v[0] = ADD(v[0], m[s[at]]); \
    v[1] = ADD(v[1], m[s[at + 2]]); \
    v[2] = ADD(v[2], m[s[at + 4]]); \
    v[3] = ADD(v[3], m[s[at + 6]]);

#define INTO_FOUR(OP, v, x0, x1, x2, x3, y0, y1, y2, y3) \
    v[x0] = OP(v[x0], v[y0]); \
    v[x1] = OP(v[x1], v[y1]); \
    v[x2] = OP(v[x2], v[y2]); \
    v[x3] = OP(v[x3], v[y3]);

#define TURN_FOUR(ROR, v, x0, x1, x2, x3) \
    v[x0] = ROR(v[x0]); \
    v[x1] = ROR(v[x1]); \
    v[x2] = ROR(v[x2]); \
    v[x3] = ROR(v[x3]);

#define HALF_MIX(v, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3, ROR_D, ROR_B) \
    INTO_FOUR(ADD, v, 0, 1, 2, 3, b0, b1, b2, b3) \
    INTO_FOUR(XOR, v, d0, d1, d2, d3, 0, 1, 2, 3) \
    TURN_FOUR(ROR_D, v, d0, d1, d2, d3) \
    INTO_FOUR(ADD, v, c0, c1, c2, c3, d0, d1, d2, d3) \
    INTO_FOUR(XOR, v, b0, b1, b2, b3, c0, c1, c2, c3) \
    TURN_FOUR(ROR_B, v, b0, b1, b2, b3)

#define MIX_FOUR(v, m, s, at, ...) \
    ADD_WORDS(v, m, s, at) \
    HALF_MIX(v, __VA_ARGS__, ROR16, ROR12) \
    ADD_WORDS(v, m, s, at + 1) \
    HALF_MIX(v, __VA_ARGS__, ROR8, ROR7)

#define ROUND(v, m, s) \
    MIX_FOUR(v, m, s, 0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) \
    MIX_FOUR(v, m, s, 8, 5, 6, 7, 4, 10, 11, 8, 9, 15, 12, 13, 14)

#define SEVEN_ROUNDS(v, m) \
    ROUND(v, m, BLAKE3_SCHEDULE[0]) \
    ROUND(v, m, BLAKE3_SCHEDULE[1]) \
    ROUND(v, m, BLAKE3_SCHEDULE[2]) \
    ROUND(v, m, BLAKE3_SCHEDULE[3]) \
    ROUND(v, m, BLAKE3_SCHEDULE[4]) \
    ROUND(v, m, BLAKE3_SCHEDULE[5]) \
    ROUND(v, m, BLAKE3_SCHEDULE[6])
