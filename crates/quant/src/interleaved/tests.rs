//! Kernels keep to their operands: in these tests all memory ends where a page begins that faults (`guarded`).

#[path = "../../tests/blocks/mod.rs"]
mod blocks;

use super::*;

const MAX_ROWS: usize = 65;
const MAX_TOKENS: usize = 33;

fn activations(x: &[f32], n_tokens: usize) -> Activations16 {
    let mut activations = Activations16::default();
    activations.resize(n_tokens, x.len() / n_tokens);
    activations.parts().quantize(x);
    activations
}

/// Products of every number of tokens with several numbers of rows.
fn check(format: Format, n_cols: usize) {
    let row_bytes = format.row_bytes(n_cols);
    let (rows, x) = (blocks::blocks(format, MAX_ROWS * n_cols, 1), blocks::values(MAX_TOKENS * n_cols, 2));
    let all = activations(&x, MAX_TOKENS);
    let dots: Vec<f32> = (0..MAX_TOKENS)
        .flat_map(|t| rows.chunks_exact(row_bytes).map(move |row| (t, row)))
        .map(|(t, row)| dot16(format, row, &all, t))
        .collect();
    for n_rows in [1, 15, 16, 17, 31, 32, 33, 48, 63, 64, MAX_ROWS] {
        let rows = rows[..n_rows * row_bytes].to_vec();
        let mut weight = Interleaved::new(format, n_rows, n_cols).unwrap();
        let n_groups = weight.n_groups();
        Interleaved::interleave_groups(format, n_cols, &rows, 0..n_groups, weight.groups_mut().0);
        for n_tokens in 1..=MAX_TOKENS {
            let x = activations(&x[..n_tokens * n_cols], n_tokens);
            for isa in IntegerIsa::available() {
                let mut out = vec![f32::NAN; n_tokens * n_rows];
                let view = OutView::new(&mut out, n_tokens, n_rows);
                matmul16(isa, &weight, 0..n_rows, &x, view, &mut Scratch::new());
                for (i, out) in out.iter().enumerate() {
                    let want = dots[i / n_rows * MAX_ROWS + i % n_rows];
                    assert_eq!(
                        out.to_bits(),
                        want.to_bits(),
                        "{format:?} {isa:?} {n_rows} rows, {n_tokens} tokens: {i}"
                    );
                }
            }
        }
    }
}

#[test]
fn no_kernel_touches_a_byte_behind_its_operands() {
    if IntegerIsa::available().is_empty() {
        return println!("SKIPPED: interleaved weights need a processor with AVX2");
    }
    for format in Format::ALL.iter().copied().filter(|format| can_interleave(*format)) {
        // One block, some, and more than tiles of sixteen tokens take in one stretch.
        for n_cols in [format.block_len(), 3 * format.block_len(), 1280] {
            check(format, n_cols);
        }
    }
}
