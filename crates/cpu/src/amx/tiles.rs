//! The tile registers: whether there are any, their shape, and the product of a block.

use std::arch::asm;
use std::sync::OnceLock;

/// Whether this machine and its operating system lend tiles to this process.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_tiles() && may_use_tiles())
}

/// Whether the processor has tiles of `bf16` and the operating system saves them.
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const OSXSAVE: u32 = 1 << 27;
    const TILE_AND_BF16: u32 = 1 << 24 | 1 << 22;
    const TILE_STATE: u64 = 1 << 17 | 1 << 18;
    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // SAFETY: only called where XGETBV exists.
        unsafe { _xgetbv(0) }
    }
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    // SAFETY: the operating system has enabled XSAVE, and with it XGETBV.
    __cpuid_count(7, 0).edx & TILE_AND_BF16 == TILE_AND_BF16 && unsafe { saved() } & TILE_STATE == TILE_STATE
}

/// Linux lends tiles to processes that ask.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: asks for a permission; touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// A thread's eight tiles, sixteen rows of 64 bytes each while this lives.
pub(crate) struct Tiles(());

/// A block of activations against a panel.
pub(crate) struct Block {
    /// `bf16`, 32 for each step.
    pub x: *const u8,
    /// Bytes from row to row.
    pub x_ld: usize,
    /// For each step two tiles of weights, `[16 pairs of columns, 16 outputs, 2 columns]` `bf16`.
    pub panel: *const u8,
    /// Steps of 32 columns, at least one.
    pub steps: usize,
    /// `[rows, 32]` sums, and bytes from row to row.
    pub sums: *mut f32,
    pub sums_ld: usize,
    /// Whether the sums begin with what they hold, rather than with zero.
    pub more: bool,
}

impl Tiles {
    /// Shapes the calling thread's tiles.
    ///
    /// # Safety
    /// Tiles are available, and the thread has no other `Tiles`.
    pub(crate) unsafe fn shape() -> Tiles {
        let mut config = Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        config.bytes[..8].fill(64);
        config.rows[..8].fill(16);
        // SAFETY: a valid configuration of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags)) };
        Tiles(())
    }

    /// A product of nothing. The multiplier of tiles goes to sleep after some 1,200 cycles without work and takes 900 to
    /// wake: one such product every few hundred cycles keeps it awake while panels are filled.
    pub fn stay_awake(&self) {
        // SAFETY: the tiles are shaped.
        unsafe {
            asm!("tilezero tmm7", "tilezero tmm6", "tilezero tmm5", "tdpbf16ps tmm7, tmm6, tmm5",
                out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack, nomem, preserves_flags))
        }
    }

    /// 32 rows of activations against 32 outputs.
    ///
    /// # Safety
    /// The pointers are valid for the shapes.
    pub(crate) unsafe fn two(&self, b: Block) {
        // SAFETY: the caller's promise; the tiles are shaped.
        unsafe {
            asm!(
                "test {more:e}, {more:e}",
                "jz 2f",
                "tileloadd tmm0, [{sums} + {line}*1]",
                "tileloadd tmm1, [{sums} + {line}*1 + 64]",
                "tileloadd tmm2, [{sums1} + {line}*1]",
                "tileloadd tmm3, [{sums1} + {line}*1 + 64]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "tileloadd tmm4, [{x} + {x_ld}*1]",
                "tileloadd tmm6, [{w} + {half}*1]",
                "tileloadd tmm7, [{w} + {half}*1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{x1} + {x_ld}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x}, 64",
                "add {x1}, 64",
                "add {w}, 2048",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 64], tmm1",
                "tilestored [{sums1} + {line}*1], tmm2",
                "tilestored [{sums1} + {line}*1 + 64], tmm3",
                more = in(reg) u32::from(b.more),
                sums = in(reg) b.sums,
                sums1 = in(reg) b.sums.wrapping_byte_add(16 * b.sums_ld),
                line = in(reg) b.sums_ld,
                half = in(reg) 64usize,
                x = inout(reg) b.x => _,
                x1 = inout(reg) b.x.wrapping_add(16 * b.x_ld) => _,
                x_ld = in(reg) b.x_ld,
                w = inout(reg) b.panel => _,
                steps = inout(reg) b.steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        }
    }

    /// 16 rows of activations against 32 outputs: the same sums, in the same order, as [`Tiles::two`].
    ///
    /// # Safety
    /// The pointers are valid for the shapes.
    pub(crate) unsafe fn one(&self, b: Block) {
        // SAFETY: the caller's promise; the tiles are shaped.
        unsafe {
            asm!(
                "test {more:e}, {more:e}",
                "jz 2f",
                "tileloadd tmm0, [{sums} + {line}*1]",
                "tileloadd tmm1, [{sums} + {line}*1 + 64]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "3:",
                "tileloadd tmm4, [{x} + {x_ld}*1]",
                "tileloadd tmm6, [{w} + {half}*1]",
                "tileloadd tmm7, [{w} + {half}*1 + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {x}, 64",
                "add {w}, 2048",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{sums} + {line}*1], tmm0",
                "tilestored [{sums} + {line}*1 + 64], tmm1",
                more = in(reg) u32::from(b.more),
                sums = in(reg) b.sums,
                line = in(reg) b.sums_ld,
                half = in(reg) 64usize,
                x = inout(reg) b.x => _,
                x_ld = in(reg) b.x_ld,
                w = inout(reg) b.panel => _,
                steps = inout(reg) b.steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        }
    }
}

/// Operands of a product that lie in memory as their makers left them; strides in bytes.
pub(crate) struct Strip {
    /// Sixteen rows of `bf16`, 32 for each step.
    pub a: *const u8,
    pub a_ld: usize,
    /// Rows of 32 pairs of `bf16`, sixteen rows for each step.
    pub b: *const u8,
    pub b_ld: usize,
    /// Steps along the summed dimension, at least one.
    pub steps: usize,
    /// `[16, 32]` sums.
    pub sums: *mut f32,
    pub sums_ld: usize,
}

impl Tiles {
    /// `sums = a b`.
    ///
    /// # Safety
    /// The pointers are valid for the shapes.
    pub(crate) unsafe fn strip(&self, s: Strip) {
        // SAFETY: the caller's promise; the tiles are shaped.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "3:",
                "tileloadd tmm4, [{a} + {a_ld}*1]",
                "tileloadd tmm6, [{b} + {b_ld}*1]",
                "tileloadd tmm7, [{b} + {b_ld}*1 + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {a}, 64",
                "add {b}, {b_step}",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{sums} + {sums_ld}*1], tmm0",
                "tilestored [{sums} + {sums_ld}*1 + 64], tmm1",
                a = inout(reg) s.a => _,
                a_ld = in(reg) s.a_ld,
                b = inout(reg) s.b => _,
                b_ld = in(reg) s.b_ld,
                b_step = in(reg) 16 * s.b_ld,
                steps = inout(reg) s.steps => _,
                sums = in(reg) s.sums,
                sums_ld = in(reg) s.sums_ld,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        }
    }

    /// `sums += a b` for one step and as many times 32 sums of a row as `s.steps` says, side by side.
    ///
    /// # Safety
    /// The pointers are valid for the shapes.
    pub(crate) unsafe fn add_strips(&self, s: Strip) {
        // SAFETY: the caller's promise; the tiles are shaped.
        unsafe {
            asm!(
                "tileloadd tmm4, [{a} + {a_ld}*1]",
                "3:",
                "tileloadd tmm0, [{sums} + {sums_ld}*1]",
                "tileloadd tmm6, [{b} + {b_ld}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm1, [{sums} + {sums_ld}*1 + 64]",
                "tileloadd tmm7, [{b} + {b_ld}*1 + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tilestored [{sums} + {sums_ld}*1], tmm0",
                "tilestored [{sums} + {sums_ld}*1 + 64], tmm1",
                "add {b}, 128",
                "add {sums}, 128",
                "dec {steps}",
                "jnz 3b",
                a = in(reg) s.a,
                a_ld = in(reg) s.a_ld,
                b = inout(reg) s.b => _,
                b_ld = in(reg) s.b_ld,
                steps = inout(reg) s.steps => _,
                sums = inout(reg) s.sums => _,
                sums_ld = in(reg) s.sums_ld,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            )
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the thread's tiles were shaped by this.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}
