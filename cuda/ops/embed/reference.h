// embed, in plain loops over values that are already floats.
#pragma once

#include <cstdint>
#include <vector>

inline std::vector<float> embed_reference(const std::vector<float> &table, uint32_t d_model,
                                          const std::vector<uint32_t> &tokens) {
    std::vector<float> out;
    for (uint32_t token : tokens)
        for (uint32_t i = 0; i < d_model; i++) out.push_back(table[(size_t)token * d_model + i]);
    return out;
}
