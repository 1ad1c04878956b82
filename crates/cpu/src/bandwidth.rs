//! What the machine can do, measured: the rate at which all threads read memory, and the rate of multiply-adds.

use crate::buffer::Shared;
use crate::simd::{self, Kernel, Level, PAIRS, Simd};
use crate::{Cpu, pool::Pool};
use std::hint::black_box;
use std::time::Instant;

/// Bytes that a task of a read loop takes.
const PIECE: usize = 1 << 20;

/// Memory from the system, in huge pages where it grants them, every page touched.
struct Region {
    ptr: *mut u8,
    len: usize,
}

impl Region {
    fn new(len: usize, pool: &Pool) -> Option<Region> {
        let len = len.next_multiple_of(PIECE);
        // SAFETY: an anonymous private mapping at an address of the system's choice.
        let ptr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANON,
                -1,
                0,
            )
        };
        if ptr == libc::MAP_FAILED {
            return None;
        }
        #[cfg(target_os = "linux")]
        // SAFETY: advice about our own mapping; a refusal changes nothing.
        unsafe {
            libc::madvise(ptr, len, libc::MADV_HUGEPAGE);
        }
        let region = Region { ptr: ptr.cast(), len };
        let to = Shared(region.ptr);
        pool.run(len / PIECE, &|i| {
            // SAFETY: each task writes its own piece of the mapping.
            unsafe { { to }.part(i * PIECE, PIECE) }.fill(i as u8);
        });
        Some(region)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: our mapping, unmapped once.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}

/// How a read loop walks.
#[derive(Clone, Copy, Debug)]
enum Walk {
    /// One vector after another, several sums.
    Plain,
    /// The same, asking for lines 2 KiB ahead.
    Prefetch,
    /// Four streams, a quarter of the piece apart.
    Streams,
}

struct Read {
    from: *const u8,
    len: usize,
    walk: Walk,
}

impl Kernel for Read {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        const STEP: usize = 256;
        // SAFETY: `len` readable bytes, a multiple of four steps; prefetches may point anywhere.
        unsafe {
            let mut a = [S::zero(); 4];
            let quarter = self.len / 4;
            let mut i = 0;
            while i < self.len {
                for (j, a) in a.iter_mut().enumerate() {
                    let p = match self.walk {
                        Walk::Streams => self.from.add(j * quarter + i / 4),
                        _ => self.from.add(i + j * 64),
                    };
                    if matches!(self.walk, Walk::Prefetch) {
                        S::prefetch(p.wrapping_add(2048));
                    }
                    *a = S::add(*a, S::load(p.cast()));
                }
                i += STEP;
            }
            S::sum(S::add(S::add(a[0], a[1]), S::add(a[2], a[3])))
        }
    }
}

/// Bytes a second that all threads of the pool read from memory: the best of three read loops, each run twice over
/// `bytes` (which should be well beyond the caches; 2 GiB is a good choice). Zero where no memory is to be had.
pub fn read_bytes_per_second(cpu: &Cpu, bytes: usize) -> f64 {
    let Some(region) = Region::new(bytes, &cpu.pool) else { return 0.0 };
    let from = Shared(region.ptr);
    let mut best = 0.0f64;
    for walk in [Walk::Plain, Walk::Prefetch, Walk::Streams] {
        for _ in 0..2 {
            let start = Instant::now();
            cpu.pool.run(region.len / PIECE, &|i| {
                // SAFETY: a piece of the mapping; nobody writes.
                let sum = unsafe { simd::run(cpu.level, Read { from: { from }.0.add(i * PIECE), len: PIECE, walk }) };
                black_box(sum);
            });
            best = best.max(region.len as f64 / start.elapsed().as_secs_f64());
        }
    }
    best
}

const CHAINS: usize = 12;

struct Peak {
    dot: bool,
    turns: usize,
}

impl Kernel for Peak {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: the constants are whole vectors.
        unsafe {
            let ones = black_box([0x3f80u16; PAIRS]);
            let singles = black_box([1.0f32; 16]);
            let (a, b) = (S::load_pairs(ones.as_ptr().cast()), S::load_pairs(ones.as_ptr().cast()));
            let (x, y) = (S::load(singles.as_ptr()), S::load(singles.as_ptr()));
            let mut acc = [S::zero(); CHAINS];
            for _ in 0..self.turns {
                for v in &mut acc {
                    *v = if self.dot { S::dot(*v, a, b) } else { S::fma(x, y, *v) };
                }
            }
            let mut total = 0.0;
            for v in acc {
                total += S::sum(v);
            }
            total
        }
    }
}

/// Floating-point operations a second (a multiply-add is two) of all threads: `f32` multiply-adds, and `bf16` products
/// where the level has them (otherwise the same number).
pub fn peak_flops(cpu: &Cpu) -> (f64, f64) {
    let measure = |dot: bool| {
        let (turns, width) = (2_000_000, if dot { PAIRS } else { PAIRS / 2 });
        let turns = if cpu.level == Level::Scalar { turns / 100 } else { turns };
        let threads = cpu.pool.threads();
        let mut best = 0.0f64;
        for _ in 0..3 {
            let start = Instant::now();
            cpu.pool.run(threads, &|_| {
                // SAFETY: the kernel has no conditions.
                black_box(unsafe { simd::run(cpu.level, Peak { dot, turns }) });
            });
            let work = (threads * turns * CHAINS * width * 2) as f64;
            best = best.max(work / start.elapsed().as_secs_f64());
        }
        best
    };
    let single = measure(false);
    (single, if cpu.level.has_bf16() { measure(true) } else { single })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_something_on_every_level() {
        for level in Level::ALL.into_iter().filter(|l| l.available()) {
            let cpu = Cpu::with_level(2, level);
            assert!(read_bytes_per_second(&cpu, 8 << 20) > 0.0);
        }
    }
}
