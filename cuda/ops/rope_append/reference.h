// RoPE, in plain loops and double.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

// Turns each pair of a head's first n_rope values by position * inv_freq[i]; pairs are (2i, 2i + 1) or (i, i + n_rope /
// 2).
inline void rope_append_reference(std::vector<double> &head, const std::vector<double> &inv_freq, bool adjacent,
                                  uint32_t position) {
    const size_t n_pairs = inv_freq.size();
    for (size_t i = 0; i < n_pairs; i++) {
        double &x = head[adjacent ? 2 * i : i], &y = head[adjacent ? 2 * i + 1 : i + n_pairs];
        const double angle = position * inv_freq[i], a = x, b = y;
        x = a * std::cos(angle) - b * std::sin(angle);
        y = a * std::sin(angle) + b * std::cos(angle);
    }
}
