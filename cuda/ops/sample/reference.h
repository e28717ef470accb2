// sample, in plain loops and double: `crates/engine/src/sampler.rs` without its short cuts.
#pragma once

#include "worker_cuda.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <vector>

inline void philox4x32_reference(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]) {
    uint32_t c[4] = {counter[0], counter[1], counter[2], counter[3]}, k[2] = {key[0], key[1]};
    for (int round = 0; round < 10; round++) {
        const uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
        const uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k[0], (uint32_t)b, (uint32_t)(a >> 32) ^ c[3] ^ k[1], (uint32_t)a};
        for (int i = 0; i < 4; i++) c[i] = next[i];
        k[0] += 0x9E3779B9u;
        k[1] += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; i++) out[i] = c[i];
}

inline double uniform_reference(uint64_t seed, uint64_t position) {
    const uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t out[4];
    philox4x32_reference(counter, key, out);
    return (double)(((uint64_t)out[0] << 32 | out[1]) >> 11) * std::ldexp(1.0, -53);
}

// What may be drawn from a row, and what is.
struct SampleReference {
    uint32_t status = 0;
    float maximum = 0;
    uint32_t id = 0xFFFFFFFFu;
    double u = 0;
    std::vector<double> weights;  // of all tokens; the most likely has 1
    std::vector<char> kept;       // by the filters
    double total = 0;             // of what is kept
    double edge = 0;              // the least weight kept
    double edge_doubt = 0;        // weight whose keeping is a matter of rounding, as a share of `total`
};

inline double sound_reference(float x) { return x == x ? (double)x : -INFINITY; }

// As `orcd_sample_args` has them.
struct SampleLists {
    const uint32_t *changed;
    const orcd_sample_change *changes;
    const uint32_t *masks;
};

// A row's logits after biases, mask and penalties.
inline std::vector<float> adjust_reference(const float *logits, uint32_t n_vocab, const orcd_sample_params &p,
                                           const SampleLists &lists) {
    std::vector<float> x(logits, logits + n_vocab);
    const bool has_changes = p.changes_start != ORCD_SAMPLE_NO_CHANGES;
    for (uint32_t i = 0; i < p.changed_len; i++) {
        float &logit = x[lists.changed[p.changed_start + i]];
        const orcd_sample_change change = has_changes ? lists.changes[p.changes_start + i] : orcd_sample_change{1, 0.0f};
        logit += change.bias;
        if (change.count == 0) continue;
        if (p.repetition_penalty != 1.0f)
            logit = logit > 0 ? std::min(logit / p.repetition_penalty, FLT_MAX) : logit * p.repetition_penalty;
        if (has_changes) {
            const float by_count = p.frequency_penalty * (float)change.count;
            logit -= p.presence_penalty + by_count;
        }
    }
    if (p.mask != ORCD_SAMPLE_NO_MASK) {
        const uint32_t *mask = lists.masks + (size_t)p.mask * ((n_vocab + 31) / 32);
        for (uint32_t id = 0; id < n_vocab; id++)
            if ((mask[id / 32] >> id % 32 & 1) == 0) x[id] = -INFINITY;
    }
    return x;
}

inline SampleReference sample_reference(const float *logits, uint32_t n_vocab, const orcd_sample_params &p,
                                        const SampleLists &lists) {
    SampleReference r;
    const std::vector<float> x = adjust_reference(logits, n_vocab, p, lists);
    r.maximum = -INFINITY;
    for (float v : x)
        if (v > r.maximum) r.maximum = v;
    if (!std::isfinite(r.maximum)) {
        r.status = 1;
        return r;
    }
    if (p.temperature == 0) {
        r.id = (uint32_t)(std::find(x.begin(), x.end(), r.maximum) - x.begin());
        return r;
    }
    std::vector<uint32_t> order;
    for (uint32_t id = 0; id < n_vocab; id++) {
        const double exponent = (sound_reference(x[id]) - r.maximum) / p.temperature;
        r.weights.push_back(exponent > -87 ? std::exp(exponent) : 0.0);
        order.push_back(id);
    }
    // Most likely first, ties by id; each filter keeps a beginning of it.
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
        return r.weights[a] != r.weights[b] ? r.weights[a] > r.weights[b] : a < b;
    });
    const double kClose = 1e-5;
    double doubt = 0;
    size_t n = order.size();
    while (n > 0 && r.weights[order[n - 1]] == 0) n--;
    if (p.top_k > 0 && p.top_k < n) {
        n = p.top_k;
        const double in = r.weights[order[n - 1]], out = r.weights[order[n]];
        if (in != out && in - out < kClose * in) doubt += in;
    }
    if (p.top_p < 1.0f) {
        double total = 0, sum = 0;
        for (size_t i = 0; i < n; i++) total += r.weights[order[i]];
        const double goal = (double)p.top_p * total;
        size_t n_kept = 0;
        while (n_kept < n && (n_kept == 0 || sum < goal)) {
            sum += r.weights[order[n_kept++]];
            // Sums of F32 weights err by less than this.
            if (std::fabs(sum - goal) < 1e-6 * total) doubt += r.weights[order[n_kept - 1]];
        }
        for (size_t i = n_kept; i < n && sum < goal + 1e-6 * total; i++) {
            sum += r.weights[order[i]];
            doubt += r.weights[order[i]];
        }
        n = n_kept;
    }
    if (p.min_p > 0.0f) {
        while (n > 1 && r.weights[order[n - 1]] < p.min_p) n--;
        for (double w : r.weights)
            if (std::fabs(w - p.min_p) < kClose * p.min_p) doubt += w;
    }
    r.kept.assign(n_vocab, 0);
    for (size_t i = 0; i < n; i++) {
        r.kept[order[i]] = 1;
        r.total += r.weights[order[i]];
    }
    r.edge = r.weights[order[n - 1]];
    r.edge_doubt = doubt / r.total;
    // Drawn in order of id.
    r.u = uniform_reference(p.seed, p.position);
    double sum = 0;
    for (uint32_t id = 0; id < n_vocab; id++) {
        if (!r.kept[id] || r.weights[id] == 0) continue;
        sum += r.weights[id];
        r.id = id;
        if (sum > r.u * r.total) break;
    }
    return r;
}

// How far, as a share of all, the random number lies outside what belongs to `id`; infinite if the filters drop it.
inline double distance_reference(const SampleReference &r, uint32_t id) {
    if (id >= r.weights.size() || r.weights[id] == 0) return INFINITY;
    if (!r.kept[id] && (r.edge_doubt == 0 || r.weights[id] < r.edge * (1 - 1e-4))) return INFINITY;
    double before = 0;
    for (uint32_t i = 0; i < id; i++)
        if (r.kept[i]) before += r.weights[i];
    const double low = before / r.total, high = (before + r.weights[id]) / r.total;
    return std::max(0.0, std::max(low - r.u, r.u - high));
}

// ln of the model's own softmax. Impossible tokens have -inf.
inline std::vector<double> logprobs_reference(const float *logits, uint32_t n_vocab) {
    double maximum = -INFINITY, sum = 0;
    std::vector<double> out;
    for (uint32_t id = 0; id < n_vocab; id++) {
        out.push_back(sound_reference(logits[id]));
        maximum = std::max(maximum, out.back());
    }
    for (double x : out) sum += std::exp(x - maximum);
    for (double &x : out) x -= maximum + std::log(sum);
    return out;
}

// The ids of the `n` greatest logits, greatest first, ties by id.
inline std::vector<uint32_t> most_likely_reference(const float *logits, uint32_t n_vocab, uint32_t n) {
    std::vector<uint32_t> ids;
    for (uint32_t id = 0; id < n_vocab; id++)
        if (logits[id] > -INFINITY) ids.push_back(id);
    n = std::min<uint32_t>(n, (uint32_t)ids.size());
    std::partial_sort(ids.begin(), ids.begin() + n, ids.end(), [&](uint32_t a, uint32_t b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    ids.resize(n);
    return ids;
}
