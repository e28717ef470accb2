#include "../../test/matrices.h"
#include "reference.h"

using namespace harness;

TEST(embed_copies_rows_exactly) {
    Random random(31);
    for (uint32_t format = 0; format < ORCD_N_FORMATS; format++) {
        for (uint32_t d_model : {32u, 96u, 256u, 512u, 896u}) {
            if (d_model % block_of(format)) continue;
            TestMatrix table(format, 61, d_model, random);
            const std::vector<uint32_t> tokens = {60, 0, 7, 7, 33};
            Guarded<uint32_t> d_tokens(tokens);
            Guarded<float> residual(tokens.size() * d_model);
            orcd_embed_args a{table.matrix, d_tokens.get(), residual.get(), (uint32_t)tokens.size()};
            CUDA(orcd_embed(&a, nullptr));
            CHECK(same_bits(residual.read(), embed_reference(table.values, d_model, tokens)), "%s, d_model %u", name_of(format), d_model);
        }
    }
}
