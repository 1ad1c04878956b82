//! A persistent pool of worker threads for parallel regions of a few microseconds.
//!
//! A region is a number of tasks. The calling thread takes part; each participant owns a contiguous range of the
//! tasks, which it claims one by one in order (so that a walk over memory stays a walk), and then helps the others.
//! Workers spin for a short while after a region and then park, so an idle pool costs nothing and a busy one starts a
//! region without a system call. A region ends without waiting for workers that never woke up.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker looks for the next region before it parks.
const SPIN: Duration = Duration::from_micros(80);
/// How long the caller spins for the last task of a region before it offers its core to others.
const WAIT: Duration = Duration::from_micros(50);

const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const EPOCH: u64 = 1 << 32;

thread_local! {
    static IN_REGION: Cell<bool> = const { Cell::new(false) };
}

type Task = dyn Fn(usize) + Sync;

#[derive(Clone, Copy)]
struct Region {
    task: *const Task,
    tasks: usize,
}

#[repr(align(128))]
struct Cursor(AtomicUsize);

struct Shared {
    /// Epoch in the high half, whether the region can be entered, and how many workers are inside.
    state: AtomicU64,
    region: UnsafeCell<Region>,
    cursors: Box<[Cursor]>,
    sleeping: Box<[AtomicBool]>,
    stop: AtomicBool,
    failed: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `region` is written only by the thread that holds the pool's lock, while no worker is inside (see `run`),
// and read only by workers that entered after it was published; the task it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only followed while the caller of `run` keeps the task alive.
unsafe impl Send for Shared {}

/// A pool of threads; see the module's page.
pub struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    lock: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    handles: Vec<Thread>,
}

struct Inside(bool);

impl Inside {
    fn enter() -> Inside {
        Inside(IN_REGION.replace(true))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        IN_REGION.set(self.0);
    }
}

impl Shared {
    /// Claims and runs tasks until none is left: first those of `me`, then those of the others.
    fn work(&self, me: usize, region: Region) {
        let _inside = Inside::enter();
        let n = self.cursors.len();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for t in (0..n).map(|i| (me + i) % n) {
                let end = range_start(t + 1, n, region.tasks);
                loop {
                    let i = self.cursors[t].0.fetch_add(1, Ordering::Relaxed);
                    if i >= end {
                        break;
                    }
                    // SAFETY: the caller of `run` keeps the task alive until every participant has left.
                    unsafe { (*region.task)(i) };
                }
            }
        }));
        if let Err(payload) = outcome {
            for c in &self.cursors {
                c.0.store(usize::MAX / 2, Ordering::Relaxed);
            }
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    fn worker(&self, me: usize) {
        let mut seen = 0;
        let mut since = Instant::now();
        let mut turns = 0u32;
        loop {
            let s = self.state.load(Ordering::SeqCst);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if s / EPOCH != seen && s & OPEN != 0 {
                if self.state.compare_exchange(s, s + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    seen = s / EPOCH;
                    // SAFETY: the region was published before the state that we entered, and is not written again
                    // until we leave.
                    let region = unsafe { *self.region.get() };
                    self.work(me, region);
                    self.state.fetch_sub(1, Ordering::Release);
                    since = Instant::now();
                    turns = 0;
                }
                continue;
            }
            turns += 1;
            if !turns.is_multiple_of(32) || since.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            self.sleeping[me].store(true, Ordering::SeqCst);
            let s = self.state.load(Ordering::SeqCst);
            let nothing = s / EPOCH == seen || s & OPEN == 0;
            if nothing && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.sleeping[me].store(false, Ordering::SeqCst);
            since = Instant::now();
        }
    }
}

/// The first task of participant `t` of `n`.
fn range_start(t: usize, n: usize, tasks: usize) -> usize {
    (tasks / n) * t + (tasks % n).min(t)
}

/// More threads than this only get into each other's way, and some systems cannot start them.
pub const MOST_THREADS: usize = 1024;

impl Pool {
    /// A pool in which `threads` threads work, the caller's included; 0 means [`default_threads`], and more than
    /// [`MOST_THREADS`] are not started.
    pub fn new(threads: usize) -> Pool {
        let wanted = if threads == 0 { default_threads() } else { threads.min(MOST_THREADS) };
        fn nothing(_: usize) {}
        let task: *const Task = &(nothing as fn(usize));
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            region: UnsafeCell::new(Region { task, tasks: 0 }),
            cursors: (0..wanted).map(|_| Cursor(AtomicUsize::new(0))).collect(),
            sleeping: (0..wanted).map(|_| AtomicBool::new(false)).collect(),
            stop: AtomicBool::new(false),
            failed: Mutex::new(None),
        });
        // A worker that cannot be started is one that never helps: its tasks are claimed by the others.
        let workers: Vec<_> = (1..wanted)
            .filter_map(|me| {
                let shared = shared.clone();
                thread::Builder::new().name(format!("marlin-{me}")).spawn(move || shared.worker(me)).ok()
            })
            .collect();
        let handles = workers.iter().map(|w| w.thread().clone()).collect();
        Pool { threads: workers.len() + 1, shared, lock: Mutex::new(()), workers, handles }
    }

    /// Threads that take part in a region.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `task(0)..task(tasks - 1)`, each once, in parallel, and returns when all are done.
    ///
    /// Called from inside a region (of any pool), it runs them one after another on the calling thread. A panic in a
    /// task ends the region early and continues in the caller.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() || tasks <= 1 || IN_REGION.get() {
            (0..tasks).for_each(task);
            return;
        }
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Every participant has left the region before this function returns.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        let region = Region { task, tasks };
        let n = shared.cursors.len();
        for (t, c) in shared.cursors.iter().enumerate() {
            c.0.store(range_start(t, n, tasks), Ordering::Relaxed);
        }
        // SAFETY: we hold the lock and the last region was closed and left, so nobody reads this now.
        unsafe { *shared.region.get() = region };
        let epoch = shared.state.load(Ordering::Relaxed) / EPOCH + 1;
        shared.state.store(((epoch % (1 << 32)) * EPOCH) | OPEN, Ordering::SeqCst);
        for (i, handle) in self.handles.iter().enumerate() {
            if shared.sleeping[i + 1].load(Ordering::SeqCst) {
                handle.unpark();
            }
        }
        shared.work(0, region);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turns = 0u32;
        let mut since = None;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            turns += 1;
            if turns.is_multiple_of(64) && since.get_or_insert_with(Instant::now).elapsed() > WAIT {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let failed = shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guard);
        if let Some(payload) = failed {
            resume_unwind(payload);
        }
    }

    /// Runs `body` over the ranges of `0..n` in pieces of at least `grain`, several for each thread; on the calling
    /// thread alone where there is only one piece.
    pub fn ranges(&self, n: usize, grain: usize, body: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
        let grain = grain.max(1);
        let pieces = (n / grain).clamp(1, self.threads * 8);
        self.run(pieces, &|i| {
            let r = range_start(i, pieces, n)..range_start(i + 1, pieces, n);
            if !r.is_empty() {
                body(r);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.handles.iter().for_each(Thread::unpark);
        for w in self.workers.drain(..) {
            // A worker catches its tasks' panics, so there is nothing to learn from how it ended.
            let _ = w.join();
        }
    }
}

/// The physical cores this process may use; on Apple silicon the performance cores.
pub fn default_threads() -> usize {
    let allowed = thread::available_parallelism().map_or(1, |n| n.get());
    physical_cores().unwrap_or(allowed).clamp(1, allowed)
}

#[cfg(target_os = "linux")]
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|n| n.strip_prefix("cpu")) else { continue };
        if number.parse::<usize>().is_err() {
            continue;
        }
        let siblings = std::fs::read_to_string(entry.path().join("topology/thread_siblings_list")).ok()?;
        cores.insert(siblings.trim().to_owned());
    }
    (!cores.is_empty()).then_some(cores.len())
}

#[cfg(target_vendor = "apple")]
fn physical_cores() -> Option<usize> {
    [c"hw.perflevel0.physicalcpu", c"hw.physicalcpu"].into_iter().find_map(|name| {
        let mut value: libc::c_int = 0;
        let mut size = std::mem::size_of::<libc::c_int>();
        // SAFETY: the name ends in zero, and the value and its size are ours and of the size that we say.
        let rc =
            unsafe { libc::sysctlbyname(name.as_ptr(), (&raw mut value).cast(), &mut size, std::ptr::null_mut(), 0) };
        (rc == 0 && value > 0).then_some(value as usize)
    })
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn physical_cores() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_once(pool: &Pool, n: usize) {
        let hits: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
        pool.run(n, &|i| {
            hits[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 7, 16] {
            let pool = Pool::new(threads);
            for n in [0, 1, 2, 3, 15, 16, 17, 1000] {
                each_once(&pool, n);
            }
        }
    }

    #[test]
    fn many_regions_with_pauses() {
        let pool = Pool::new(4);
        for i in 0..20_000 {
            each_once(&pool, i % 9);
            if i % 4000 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
        }
    }

    #[test]
    fn nested_regions_run_inline() {
        let (a, b) = (Pool::new(3), Pool::new(2));
        let count = AtomicUsize::new(0);
        a.run(10, &|_| {
            b.run(5, &|_| a.run(2, &|_| _ = count.fetch_add(1, Ordering::Relaxed)));
        });
        assert_eq!(count.into_inner(), 100);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = Pool::new(3);
        for bad in [0, 5, 99] {
            let r = catch_unwind(AssertUnwindSafe(|| pool.run(100, &|i| assert_ne!(i, bad, "task {i}"))));
            assert!(r.is_err());
            each_once(&pool, 100);
        }
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(3);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..500).for_each(|i| each_once(&pool, i % 50)));
            }
        });
    }

    #[test]
    fn ranges_cover() {
        let pool = Pool::new(3);
        for n in [0, 1, 5, 100, 1001] {
            let hits: Vec<_> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            pool.ranges(n, 7, &|r| r.for_each(|i| _ = hits[i].fetch_add(1, Ordering::Relaxed)));
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }
}
