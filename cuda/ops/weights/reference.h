// split_q8_0, in plain loops.
#pragma once

#include <cstdint>
#include <vector>

inline void split_q8_0_reference(const std::vector<uint8_t> &blocks, std::vector<int8_t> &values, std::vector<uint16_t> &scales) {
    for (size_t block = 0; block < blocks.size() / 34; block++) {
        const uint8_t *b = &blocks[block * 34];
        scales.push_back((uint16_t)(b[0] + 256 * b[1]));
        for (int i = 0; i < 32; i++) values.push_back((int8_t)b[2 + i]);
    }
}
