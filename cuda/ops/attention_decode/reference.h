// Attention, in plain loops and double: the reference of attention_decode and of attention_prefill.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

// One query row over the tokens 0..n_tokens of its sequence.
//
// q [n_heads, d_head]; k, v [n_tokens or more, n_kv_heads, d_head]. Returns [n_heads, d_head].
inline std::vector<double> attention_reference(const float *q, const std::vector<float> &k, const std::vector<float> &v,
                                               uint32_t n_tokens, uint32_t n_heads, uint32_t n_kv_heads,
                                               uint32_t d_head) {
    std::vector<double> out((size_t)n_heads * d_head, 0.0), weights(n_tokens);
    for (uint32_t h = 0; h < n_heads; h++) {
        const size_t kv_head = h / (n_heads / n_kv_heads);
        double largest = -INFINITY, sum = 0;
        for (uint32_t t = 0; t < n_tokens; t++) {
            double score = 0;
            for (uint32_t i = 0; i < d_head; i++)
                score += (double)q[h * d_head + i] * k[(t * n_kv_heads + kv_head) * d_head + i];
            weights[t] = score / std::sqrt((double)d_head);
            largest = std::fmax(largest, weights[t]);
        }
        for (uint32_t t = 0; t < n_tokens; t++) sum += weights[t] = std::exp(weights[t] - largest);
        for (uint32_t t = 0; t < n_tokens; t++)
            for (uint32_t i = 0; i < d_head; i++)
                out[h * d_head + i] += weights[t] / sum * v[(t * n_kv_heads + kv_head) * d_head + i];
    }
    return out;
}
