// embed: residual[i, :] = table[tokens[i], :], widened to F32.
//
// Shapes:   table [n_vocab, d_model] of any format; tokens [n_tokens] u32; residual [n_tokens, d_model] f32, row-major.
// Aliasing: none.
// Mapping:  one block per token; threads stride over d_model.
// Requires: every token below n_vocab; the caller has checked it.
// Cost:     one row of the table and 4 bytes an element a token: nothing beside the rest of a step.
// Numerics: the bits that the CPU dequantizes to.
#include "dependency.cuh"
#include "weights.cuh"

namespace orcd {
namespace {

__global__ void block_per_token(orcd_embed_args a) {
    let_successor_start();
    wait_for_predecessor();
    const uint32_t token_idx = blockIdx.x;
    const uint32_t row = a.tokens[token_idx];
    float *out = a.residual + (size_t)token_idx * a.table.n_cols;
    for (uint32_t i = threadIdx.x; i < a.table.n_cols; i += blockDim.x) out[i] = weight_value(a.table, row, i);
}

}  // namespace
}  // namespace orcd

extern "C" int32_t orcd_embed(const orcd_embed_args *args, orcd_stream stream) {
    ORCD_REQUIRE(args && orcd::is_matrix(args->table) && args->tokens && args->residual && args->n_tokens > 0);
    return orcd::launch(orcd::block_per_token, dim3(args->n_tokens), dim3(256), 0, stream, *args);
}
