//! The product with AMX: tiles of sixteen rows by sixteen tokens, for prompts.
//!
//! A tile product of 32 elements gives a block's sums of integers for each plane of the activations' bytes. They go through
//! the first-level cache to vectors, which add them up as every kernel here does, so that the bits are the same. A tile could hold
//! 64 elements, but then it would add up two blocks that have different scales.
//!
//! Three blocks are under way at once: one is multiplied, the sums of the one before are stored, and those of the one before that
//! are added up. Products and stores overlap only where they are of different tiles, so the sums have two pairs of tiles in turn.
//! Measured on a core of Sapphire Rapids, where all operands lie in the first-level cache, for a block of 16 rows by 16 tokens: products
//! 8.5 ns, stores 8.5, loads 6.5, vectors 11; all together 25, and 28 with one pair. A whole product, 512 tokens by 9,728 rows
//! of 896, does 250 to 262 billion multiplications of 16 bits a second (230 where the tokens' scales are read from where they lie, a cache
//! line a token); the VNNI kernel 130 to 148.
//!
//! The intrinsics are not stable in Rust, hence `asm!`. Tiles 0 and 1, or 2 and 3, hold the sums of the high and the low bytes, 4
//! and 5 the bytes of sixteen tokens, 6 those of sixteen rows.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

use super::columns::{Columns, avx512::column, min, scale};
use super::{Activations16, BLOCK, GROUP, Interleaved};
use crate::panel::Scratch;
use crate::simd::avx512::Avx512;
use crate::tile::OutView;

/// Tokens of a tile.
pub(super) const TILE_TOKENS: usize = 16;
/// Groups that are unpacked together, and serve all tokens.
const PANEL_GROUPS: usize = 8;
/// Blocks of a row that are unpacked together: those of sixteen tokens stay in the first-level cache meanwhile.
const STRETCH: usize = 32;
/// Bytes of a group's block, unpacked.
const BLOCK_BYTES: usize = GROUP * BLOCK;
/// Bytes of a panel.
pub(crate) const PANEL_BYTES: usize = PANEL_GROUPS * STRETCH * BLOCK_BYTES;
/// Sums of a tile.
const SUMS: usize = TILE_TOKENS * GROUP;

/// Whether this processor, which has AVX-512, has the instructions, and the system lets this process use them: it is asked once.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        // Bits 24 and 25: AMX-TILE and AMX-INT8. Leaf 7 is there where AVX-512 is.
        __cpuid_count(7, 0).edx >> 24 & 3 == 3 && may_use_tiles()
    })
}

/// Asks the system for the tiles' state, which is so large that it is only saved for those who ask; for all threads.
fn may_use_tiles() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_ulong = 18;
        // SAFETY: takes two numbers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// What the tiles are, as the processor reads it.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// For products of blocks in so many parts, each with a scale of its own.
    const fn new(n_parts: usize) -> Config {
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut sums = 0;
        while sums < 4 {
            (config.row_bytes[sums], config.rows[sums]) = (64, TILE_TOKENS as u8);
            sums += 1;
        }
        (config.row_bytes[4], config.rows[4]) = ((BLOCK / n_parts) as u16, TILE_TOKENS as u8);
        (config.row_bytes[5], config.rows[5]) = ((BLOCK / n_parts) as u16, TILE_TOKENS as u8);
        (config.row_bytes[6], config.rows[6]) = (64, (BLOCK / n_parts / 4) as u8);
        config
    }
}

/// The tiles of this thread, from the moment that they are configured until they are released: then the system need not save
/// them any more.
struct Tiles;

impl Tiles {
    /// # Safety
    /// [`is_available`].
    unsafe fn configure(config: &Config) -> Tiles {
        // SAFETY: reads 64 bytes; the tiles are nobody else's.
        unsafe { asm!("ldtilecfg [{}]", in(reg) config, options(nostack, readonly)) };
        Tiles
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they have been configured, so the instruction is there.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Sums of a block's high bytes and of its low ones, `[2, 16 tokens, 16 rows]`; four blocks' in turn, so that none is stored where
/// vectors have just read.
#[repr(align(64))]
struct Sums([[i32; 2 * SUMS]; N_SUMS]);

const N_SUMS: usize = 4;

/// Some rows by tokens from the first to the last whole sixteen.
///
/// # Safety
/// `rows` begin with a group; rows and tokens are those of the operands; [`is_available`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) unsafe fn matmul<F: Columns>(
    simd: Avx512,
    weight: &Interleaved,
    rows: Range<usize>,
    x: &Activations16,
    out: &mut OutView<'_>,
    scratch: &mut Scratch,
) {
    let n_blocks = weight.n_cols() / BLOCK;
    let panel = scratch.bytes(PANEL_BYTES);
    let (first_group, n_groups) = (rows.start / GROUP, rows.len().div_ceil(GROUP));
    let mut sums = Sums([[0; 2 * SUMS]; N_SUMS]);
    let mut of_tokens =
        OfTokens { scales: [[0.0; TILE_TOKENS]; STRETCH], scaled_sums: [[0.0; TILE_TOKENS]; 2 * STRETCH] };
    // SAFETY: as the caller vouches.
    let _tiles = unsafe { Tiles::configure(const { &Config::new(F::LAYOUT.n_scales) }) };
    for group in (0..n_groups).step_by(PANEL_GROUPS) {
        let groups = group..(group + PANEL_GROUPS).min(n_groups);
        for block in (0..n_blocks).step_by(STRETCH) {
            let blocks = block..(block + STRETCH).min(n_blocks);
            let mut product = Product { simd, weight, x, n_blocks, blocks, panel, sums: &mut sums };
            // SAFETY: groups and tokens of the operands, a panel of their blocks, and tiles that are configured.
            unsafe {
                product.unpack::<F>(first_group + groups.start..first_group + groups.end);
                for token in (0..out.n_tokens() / TILE_TOKENS * TILE_TOKENS).step_by(TILE_TOKENS) {
                    of_tokens.gather::<F>(x, n_blocks, token, &product.blocks);
                    for (i, group) in groups.clone().enumerate() {
                        product.tile::<F>(i, first_group + group, group * GROUP, token, &of_tokens, out);
                    }
                }
            }
        }
    }
}

/// The operands of a product, a stretch of their blocks, and memory to unpack weights to.
struct Product<'a> {
    simd: Avx512,
    weight: &'a Interleaved,
    x: &'a Activations16,
    /// Of a row.
    n_blocks: usize,
    blocks: Range<usize>,
    /// Signed bytes. `[PANEL_GROUPS, STRETCH, 8, 16, 4]`
    panel: *mut u8,
    sums: &'a mut Sums,
}

impl Product<'_> {
    /// Takes the offset off some groups' weights.
    ///
    /// # Safety
    /// They are at most as many as a panel's.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn unpack<F: Columns>(&self, groups: Range<usize>) {
        let offset = _mm512_set1_epi8(F::LAYOUT.offset as u8 as i8);
        for (i, group) in groups.enumerate() {
            // SAFETY: blocks of the group, and room for as many in the panel.
            unsafe {
                let from = self.weight.bytes().as_ptr().add(group * self.weight.group_bytes());
                let from = from.add(F::LAYOUT.columns_at(self.n_blocks * BLOCK));
                let to = self.panel.add(i * STRETCH * BLOCK_BYTES);
                for (at, b) in self.blocks.clone().enumerate() {
                    for k in 0..BLOCK / 4 {
                        let column = _mm512_sub_epi8(column::<F>(from.add(b * F::LAYOUT.column_bytes()), k), offset);
                        _mm512_store_si512(to.add(at * BLOCK_BYTES + k * 64).cast(), column);
                    }
                }
            }
        }
    }

    /// Carries the sums of sixteen rows and tokens on along the stretch. The rows are those of `group` in the matrix, `i` in
    /// the panel, and from `row` on in `out`, where the sums rest between stretches.
    ///
    /// # Safety
    /// The operands have all of them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn tile<F: Columns>(
        &mut self,
        i: usize,
        group: usize,
        row: usize,
        token: usize,
        of_tokens: &OfTokens,
        out: &mut OutView<'_>,
    ) {
        let Self { simd, weight, x, n_blocks, ref blocks, panel, ref mut sums } = *self;
        let first = token * n_blocks + blocks.start;
        let present = u16::MAX >> (GROUP - (out.n_rows() - row).min(GROUP));
        let mut acc = [_mm512_setzero_ps(); TILE_TOKENS];
        // SAFETY: as the caller vouches; lanes of rows that there are not are neither read nor written.
        unsafe {
            // The lines that will be written have to be there by then: a store that waits for its line holds up the tiles' stores.
            (0..TILE_TOKENS).for_each(|t| _mm_prefetch::<_MM_HINT_ET0>(out.at(token + t, row).cast()));
            if blocks.start > 0 {
                for (t, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_maskz_loadu_ps(present, out.at(token + t, row));
                }
            }
            let quants = x.quants().as_ptr().add(first * 2 * BLOCK);
            let heads = weight.bytes().as_ptr().add(group * weight.group_bytes());
            let columns = panel.add(i * STRETCH * BLOCK_BYTES);
            // A block has one scale, or is taken in two parts.
            let n_parts = F::LAYOUT.n_scales;
            let n = blocks.len() * n_parts;
            let start = |i: usize| {
                let (b, part) = (i / n_parts, i % n_parts);
                let quants = quants.add(b * 2 * BLOCK + part * (BLOCK / n_parts));
                let columns = columns.add(i * (BLOCK_BYTES / n_parts));
                match i % 2 {
                    0 => multiply::<0, 1>(quants, n_blocks * 2 * BLOCK, columns),
                    _ => multiply::<2, 3>(quants, n_blocks * 2 * BLOCK, columns),
                }
            };
            // A block's sums are stored while the tile unit is at the next, and added up once it is at the one after that.
            start(0);
            for i in 0..=n {
                if i + 1 < n {
                    start(i + 1);
                }
                if i < n {
                    match i % 2 {
                        0 => store::<0, 1>(&mut sums.0[i % N_SUMS]),
                        _ => store::<2, 3>(&mut sums.0[i % N_SUMS]),
                    }
                }
                let Some(i) = i.checked_sub(1) else { continue };
                let (b, part) = (i / n_parts, i % n_parts);
                let w_scale = scale::<_, F>(simd, heads, 0, blocks.start + b, part);
                let w_min = match F::LAYOUT.has_min {
                    true => min::<_, F>(simd, heads, 0, blocks.start + b, part),
                    false => _mm512_setzero_ps(),
                };
                add_up::<F>(&sums.0[i % N_SUMS], w_scale, w_min, of_tokens, i, &mut acc);
            }
            for (t, acc) in acc.into_iter().enumerate() {
                _mm512_mask_storeu_ps(out.at(token + t, row), present, acc);
            }
        }
    }
}

/// The sums of one block, in tiles `HIGH` and `LOW`: of sixteen tokens, `stride` bytes apart, by a group's columns.
///
/// # Safety
/// Blocks of the tokens, and of a group; the tiles are configured.
#[inline(always)]
unsafe fn multiply<const HIGH: u8, const LOW: u8>(quants: *const i8, stride: usize, columns: *const u8) {
    // SAFETY: reads the blocks. Nothing else uses tiles.
    unsafe {
        asm!(
            "tilezero tmm{high}",
            "tilezero tmm{low}",
            "tileloadd tmm6, [{columns} + {line}*1]",
            "tileloadd tmm4, [{quants} + {stride}*1]",
            "tdpbssd tmm{high}, tmm4, tmm6",
            "tileloadd tmm5, [{quants} + {stride}*1 + 32]",
            "tdpbssd tmm{low}, tmm5, tmm6",
            high = const HIGH,
            low = const LOW,
            quants = in(reg) quants,
            stride = in(reg) stride,
            columns = in(reg) columns,
            line = in(reg) 64usize,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// Takes a block's sums out of their tiles.
///
/// # Safety
/// The tiles are configured.
#[inline(always)]
unsafe fn store<const HIGH: u8, const LOW: u8>(sums: &mut [i32; 2 * SUMS]) {
    // SAFETY: writes the sums. Nothing else uses tiles.
    unsafe {
        asm!(
            "tilestored [{sums} + {line}*1], tmm{high}",
            "tilestored [{sums} + {line}*1 + 1024], tmm{low}",
            high = const HIGH,
            low = const LOW,
            line = in(reg) 64usize,
            sums = in(reg) sums.as_mut_ptr(),
            options(nostack, preserves_flags),
        );
    }
}

/// Calls a closure with 0 to 15, written out: a loop is not unrolled, and what it adds to stays in memory.
macro_rules! sixteen_times {
    ($job:ident) => {
        sixteen_times!($job: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($job:ident: $($i:literal)*) => {
        $($job($i);)*
    };
}

/// Scales of sixteen tokens' blocks, and the sums of the blocks, or of their parts, times them: those of a block side by side, for
/// all groups of a panel.
#[repr(align(64))]
struct OfTokens {
    scales: [[f32; TILE_TOKENS]; STRETCH],
    scaled_sums: [[f32; TILE_TOKENS]; 2 * STRETCH],
}

impl OfTokens {
    /// Of some blocks of sixteen tokens from `token` on.
    fn gather<F: Columns>(&mut self, x: &Activations16, n_blocks: usize, token: usize, blocks: &Range<usize>) {
        for t in 0..TILE_TOKENS {
            let of_token = (token + t) * n_blocks + blocks.start..(token + t) * n_blocks + blocks.end;
            self.scales.iter_mut().zip(&x.scales[of_token.clone()]).for_each(|(to, scale)| to[t] = *scale);
            match F::LAYOUT.n_scales {
                _ if !F::LAYOUT.has_min => {}
                1 => self.scaled_sums.iter_mut().zip(&x.scaled_sums[of_token]).for_each(|(to, sum)| to[t] = *sum),
                n_parts => {
                    let sums = &x.sums[of_token.start * n_parts..of_token.end * n_parts];
                    for (i, (to, sum)) in self.scaled_sums.iter_mut().zip(sums).enumerate() {
                        to[t] = x.scales[of_token.start + i / n_parts] * *sum as f32;
                    }
                }
            }
        }
    }
}

/// `acc[t] = fma(256 high[t] + low[t], w_scale * a_scale[t], acc[t])`, and of a format that has minima
/// `acc[t] = fma(w_min, scaled_sum[t], acc[t])` then.
///
/// # Safety
/// The stretch has part `i` of its blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn add_up<F: Columns>(
    sums: &[i32; 2 * SUMS],
    w_scale: __m512,
    w_min: __m512,
    of_tokens: &OfTokens,
    i: usize,
    acc: &mut [__m512; TILE_TOKENS],
) {
    let block = i / F::LAYOUT.n_scales;
    let mut of_token = |t: usize| {
        // SAFETY: sixteen sums of each plane, and what there is of the token.
        unsafe {
            let high = _mm512_load_si512(sums.as_ptr().add(t * GROUP).cast());
            let low = _mm512_load_si512(sums.as_ptr().add(SUMS + t * GROUP).cast());
            let dot = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
            let scale = _mm512_mul_ps(w_scale, _mm512_set1_ps(*of_tokens.scales.get_unchecked(block).get_unchecked(t)));
            acc[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, acc[t]);
            if F::LAYOUT.has_min {
                let scaled_sum = _mm512_set1_ps(*of_tokens.scaled_sums.get_unchecked(i).get_unchecked(t));
                acc[t] = _mm512_fmadd_ps(w_min, scaled_sum, acc[t]);
            }
        }
    };
    sixteen_times!(of_token);
}
