//! A device with its pool of buffers and its compiled kernels.

mod compiling;
mod rehearsal;
mod slice;
mod timing;

use crate::device::{Binding, Device, Function, Handle, Launch, Matmul};
use crate::source::{Access, Entry};
use crate::{Error, Result};
use marlin_checkpoint::Bytes;
use rehearsal::Rehearsal;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::thread::ThreadId;
use std::time::Instant;
use timing::Timed;

pub use slice::{Buffer, Slice};
pub use timing::KernelTime;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the pool of buffers holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryStatistics {
    /// In use.
    pub active: usize,
    /// The most that was in use since the start or the last [`Gpu::reset_peak`].
    pub peak: usize,
    /// Free, but kept for the next to ask.
    pub cached: usize,
}

#[derive(Default)]
struct PoolState {
    free: BTreeMap<usize, Vec<Handle>>,
    statistics: MemoryStatistics,
    /// Memory that recordings are bound to: how many, and its bytes if nobody else uses it any more.
    bound: HashMap<Handle, (usize, Option<usize>)>,
}

struct Pool {
    device: Arc<dyn Device>,
    state: Mutex<PoolState>,
    /// Bytes in use at most.
    cap: usize,
    /// Free bytes kept at most.
    keep: usize,
}

impl Drop for Pool {
    fn drop(&mut self) {
        for handle in lock(&self.state).free.values().flatten() {
            self.device.free(*handle);
        }
    }
}

impl Pool {
    /// Memory that is in use no more.
    fn take_back(&self, handle: Handle, bytes: usize) {
        let mut state = lock(&self.state);
        if let Some((_, left)) = state.bound.get_mut(&handle) {
            // A replay may still read or write it.
            *left = Some(bytes);
            return;
        }
        state.statistics.active -= bytes;
        if state.statistics.cached + bytes <= self.keep {
            state.statistics.cached += bytes;
            state.free.entry(bytes).or_default().push(handle);
        } else {
            self.device.free(handle);
        }
    }
}

struct Allocation {
    pool: Arc<Pool>,
    handle: Handle,
    /// What the pool counts it as.
    bytes: usize,
    /// The host's memory, which no one else can have afterwards (the device frees it when it is through with it).
    borrowed: bool,
    /// The recording whose memory it is.
    recorded: Option<Arc<Private>>,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(private) = &self.recorded {
            lock(&private.free).entry(self.bytes).or_default().push(self.handle);
            return;
        }
        if !self.borrowed {
            return self.pool.take_back(self.handle, self.bytes);
        }
        let mut state = lock(&self.pool.state);
        state.statistics.active -= self.bytes;
        self.pool.device.free(self.handle);
    }
}

/// Memory that a recording writes whenever it is replayed: nobody else may have it as long as the recording exists.
struct Private {
    pool: Arc<Pool>,
    free: Mutex<BTreeMap<usize, Vec<Handle>>>,
}

impl Drop for Private {
    fn drop(&mut self) {
        for (bytes, handles) in std::mem::take(&mut *lock(&self.free)) {
            handles.into_iter().for_each(|handle| self.pool.take_back(handle, bytes));
        }
    }
}

/// Launches that the device replays at once, with the memory they write.
pub struct Recording {
    id: u64,
    memory: Arc<Private>,
    /// What it is bound to besides.
    bound: HashSet<Handle>,
}

impl Drop for Recording {
    fn drop(&mut self) {
        let pool = &self.memory.pool;
        pool.device.forget(self.id);
        for handle in &self.bound {
            let left = {
                let mut state = lock(&pool.state);
                let Some((count, left)) = state.bound.get_mut(handle) else { continue };
                *count -= 1;
                let (last, left) = (*count == 0, *left);
                if last {
                    state.bound.remove(handle);
                }
                left.filter(|_| last)
            };
            if let Some(bytes) = left {
                pool.take_back(*handle, bytes);
            }
        }
    }
}

/// Who records now, into which memory, and what the launches so far are bound to.
struct Recorder {
    thread: ThreadId,
    memory: Arc<Private>,
    bound: HashSet<Handle>,
}

/// How often the device was asked for something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Kernels launched one by one.
    pub launches: u64,
    /// Recordings replayed.
    pub replays: u64,
    /// Times the host waited for results.
    pub waits: u64,
    /// Kernels compiled.
    pub compiled: u64,
    /// Kernels whose code was found on disk.
    pub found: u64,
    /// Nanoseconds that somebody waited for kernels to be compiled, or read from disk.
    pub compiling: u64,
    /// Nanoseconds that they were compared with the reference.
    pub checking: u64,
}

/// Values on their way to the host.
pub struct Fetch<T> {
    device: Arc<dyn Device>,
    /// The device's number for it, if it can do such a thing.
    number: Option<u64>,
    from: Slice<T>,
}

impl<T> Drop for Fetch<T> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.device.forget_fetch(number);
        }
    }
}

/// A type whose values are plain bits.
///
/// # Safety
/// Every pattern of bits is a value, and there is no padding.
pub unsafe trait Plain: Copy + 'static {}
// SAFETY: integers and floats.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}

/// The bytes of plain values.
pub fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` values have no padding, so each of their bytes is initialised; the length is that of the slice.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// A device, its memory and its kernels.
pub struct Gpu {
    device: Arc<dyn Device>,
    pool: Arc<Pool>,
    /// Kernels by name, those that do not compile among them.
    functions: Mutex<HashMap<String, Result<Function>>>,
    /// Held by whoever asks the device for something, alone by whoever records.
    turn: RwLock<()>,
    recorder: Mutex<Option<Recorder>>,
    launches: AtomicU64,
    replays: AtomicU64,
    waits: AtomicU64,
    compiled: AtomicU64,
    found: AtomicU64,
    compiling: AtomicU64,
    checking: AtomicU64,
    /// Launches whose times are kept.
    timed: Mutex<Option<Vec<Timed>>>,
    /// Whether somebody rehearses, so that nobody else has to look.
    rehearses: AtomicBool,
    rehearsal: Mutex<Option<Rehearsal>>,
    /// Kernels that ran while they were compared with the reference, and how many such comparisons are under way.
    checks: AtomicUsize,
    checked: Mutex<HashSet<String>>,
}

impl Gpu {
    /// `device` with at most `cap` bytes in use.
    pub fn new(device: Arc<dyn Device>, cap: usize) -> Self {
        let pool = Pool { device: device.clone(), state: Mutex::default(), cap, keep: cap / 8 };
        Self {
            device,
            pool: Arc::new(pool),
            functions: Mutex::default(),
            turn: RwLock::default(),
            recorder: Mutex::default(),
            launches: AtomicU64::new(0),
            replays: AtomicU64::new(0),
            waits: AtomicU64::new(0),
            compiled: AtomicU64::new(0),
            found: AtomicU64::new(0),
            compiling: AtomicU64::new(0),
            checking: AtomicU64::new(0),
            timed: Mutex::default(),
            rehearses: AtomicBool::new(false),
            rehearsal: Mutex::default(),
            checks: AtomicUsize::new(0),
            checked: Mutex::default(),
        }
    }

    /// The memory of the recording that this thread makes, if it does.
    fn recording(&self) -> Option<Arc<Private>> {
        let here = std::thread::current().id();
        lock(&self.recorder).as_ref().filter(|r| r.thread == here).map(|r| r.memory.clone())
    }

    /// Waits until no other thread records.
    fn turn(&self) -> Option<RwLockReadGuard<'_, ()>> {
        match self.recording() {
            Some(_) => None,
            None => Some(self.turn.read().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// The same, before something bound to these is asked for: this thread's recording keeps their memory.
    fn asked(&self, bindings: &[Binding]) -> Option<RwLockReadGuard<'_, ()>> {
        let turn = self.turn();
        if turn.is_none()
            && let Some(recorder) = lock(&self.recorder).as_mut()
        {
            recorder.bound.extend(bindings.iter().map(|b| b.handle));
        }
        turn
    }

    /// Refuses, while this thread records, what cannot be replayed.
    fn not_recorded(&self, what: &str) -> Result<Option<RwLockReadGuard<'_, ()>>> {
        let turn = self.turn();
        if turn.is_none() {
            return Err(Error::Device(format!("{what} cannot be replayed")));
        }
        Ok(turn)
    }

    /// Records what `work` launches instead of running it; `None` if the device cannot. `work` may neither upload nor read
    /// nor launch a kernel that is not yet compiled. Memory that it takes belongs to the recording, so what it gives has the
    /// values of the latest replay. Other memory that it is bound to is kept for it.
    pub fn record<T>(&self, work: impl FnOnce() -> T) -> Result<Option<(Recording, T)>> {
        let alone = self.turn.write().unwrap_or_else(PoisonError::into_inner);
        if !self.device.begin_recording()? {
            return Ok(None);
        }
        let memory = Arc::new(Private { pool: self.pool.clone(), free: Mutex::default() });
        *lock(&self.recorder) =
            Some(Recorder { thread: std::thread::current().id(), memory: memory.clone(), bound: HashSet::new() });
        let done = work();
        let bound = lock(&self.recorder).take().map(|r| r.bound).unwrap_or_default();
        let id = self.device.end_recording()?;
        drop(alone);
        let mut state = lock(&self.pool.state);
        bound.iter().for_each(|handle| state.bound.entry(*handle).or_default().0 += 1);
        drop(state);
        Ok(Some((Recording { id, memory, bound }, done)))
    }

    /// Asks for all launches of a recording.
    pub fn replay(&self, recording: &Recording) -> Result<()> {
        let _turn = self.not_recorded("a replay")?;
        self.replays.fetch_add(1, Relaxed);
        self.device.replay(recording.id)
    }

    /// How often the device was asked for something.
    pub fn counts(&self) -> Counts {
        let count = |n: &AtomicU64| n.load(Relaxed);
        Counts {
            launches: count(&self.launches),
            replays: count(&self.replays),
            waits: count(&self.waits),
            compiled: count(&self.compiled),
            found: count(&self.found),
            compiling: count(&self.compiling),
            checking: count(&self.checking),
        }
    }

    /// The device.
    pub fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    /// What the pool holds.
    pub fn memory(&self) -> MemoryStatistics {
        lock(&self.pool.state).statistics
    }

    /// Begins to look for the peak anew.
    pub fn reset_peak(&self) {
        let mut state = lock(&self.pool.state);
        state.statistics.peak = state.statistics.active;
    }

    /// Gives back what is free.
    pub fn clear_cache(&self) {
        let mut state = lock(&self.pool.state);
        state.statistics.cached = 0;
        for handle in std::mem::take(&mut state.free).into_values().flatten() {
            self.device.free(handle);
        }
    }

    /// `bytes` of memory with undefined contents.
    pub fn buffer(&self, bytes: usize) -> Result<Buffer> {
        // Sizes in steps of an eighth of their magnitude, so that freed buffers find takers.
        let step = (bytes.max(1).next_power_of_two() / 8).max(256);
        let size = bytes.max(1).next_multiple_of(step);
        let recorded = self.recording();
        let whole = |handle, recorded| {
            let allocation = Allocation { pool: self.pool.clone(), handle, bytes: size, borrowed: false, recorded };
            Buffer { allocation: Arc::new(allocation), bytes }
        };
        if let Some(private) = &recorded
            && let Some(handle) = lock(&private.free).get_mut(&size).and_then(Vec::pop)
        {
            return Ok(whole(handle, recorded.clone()));
        }
        let mut state = lock(&self.pool.state);
        let active = state.statistics.active;
        let refused = || Error::OutOfMemory { bytes: size, active, cap: self.pool.cap };
        // The device does not know what the pool has.
        let of_device = |error| if matches!(error, Error::OutOfMemory { .. }) { refused() } else { error };
        if active + size > self.pool.cap {
            return Err(refused());
        }
        let kept = state.free.get_mut(&size).and_then(Vec::pop);
        let handle = match kept {
            Some(handle) => {
                state.statistics.cached -= size;
                handle
            }
            None => match self.device.allocate(size) {
                Ok(handle) => handle,
                Err(_) if state.statistics.cached > 0 => {
                    drop(state);
                    self.clear_cache();
                    let handle = self.device.allocate(size).map_err(of_device)?;
                    state = lock(&self.pool.state);
                    handle
                }
                Err(error) => return Err(of_device(error)),
            },
        };
        state.statistics.active += size;
        state.statistics.peak = state.statistics.peak.max(state.statistics.active);
        Ok(whole(handle, recorded))
    }

    /// `len` values with undefined contents.
    pub fn uninitialised<T: Plain>(&self, len: usize) -> Result<Slice<T>> {
        Ok(self.buffer(len * size_of::<T>())?.slice())
    }

    /// These values on the device.
    pub fn upload<T: Plain>(&self, values: &[T]) -> Result<Slice<T>> {
        let slice = self.uninitialised(values.len())?;
        self.write(&slice, 0, values)?;
        Ok(slice)
    }

    /// Bytes of the host on the device: used where they lie if the device can, else copied, and their pages given back.
    pub fn adopt(&self, bytes: &Bytes) -> Result<Slice<u8>> {
        if let Some((handle, offset)) = self.device.borrow(bytes)? {
            let mut state = lock(&self.pool.state);
            state.statistics.active += bytes.len();
            state.statistics.peak = state.statistics.peak.max(state.statistics.active);
            let allocation =
                Allocation { pool: self.pool.clone(), handle, bytes: bytes.len(), borrowed: true, recorded: None };
            let buffer = Buffer { allocation: Arc::new(allocation), bytes: offset + bytes.len() };
            return Ok(Slice { buffer, offset, bytes: bytes.len(), of: PhantomData });
        }
        let slice = self.upload(bytes)?;
        bytes.release();
        Ok(slice)
    }

    /// Overwrites values from number `at` on.
    pub fn write<T: Plain>(&self, to: &Slice<T>, at: usize, values: &[T]) -> Result<()> {
        if at + values.len() > to.len() {
            return Err(Error::Device(format!("{} values do not fit {} from {at} on", values.len(), to.len())));
        }
        if values.is_empty() {
            return Ok(());
        }
        let _turn = self.not_recorded("an upload")?;
        self.device.upload(to.buffer.allocation.handle, to.offset + at * size_of::<T>(), bytes_of(values))
    }

    /// The values, once everything asked for before is done.
    pub fn read<T: Plain + Default>(&self, from: &Slice<T>) -> Result<Vec<T>> {
        let mut values = vec![T::default(); from.len()];
        if !values.is_empty() && !self.is_rehearsing() {
            let _turn = self.not_recorded("reading")?;
            self.waits.fetch_add(1, Relaxed);
            // SAFETY: the bytes of `values`, of which every pattern is a value.
            let out =
                unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values.as_slice())) };
            self.device.download(from.buffer.allocation.handle, from.offset, out)?;
        }
        Ok(values)
    }

    /// Begins to copy values to the host, so that [`Gpu::fetched`] need not wait for what is asked for after this. Nothing may
    /// write them as long as the copy is there.
    pub fn fetch<T: Plain>(&self, from: &Slice<T>) -> Result<Fetch<T>> {
        let _turn = self.not_recorded("reading")?;
        let handle = from.buffer.allocation.handle;
        let number = match from.bytes {
            0 => None,
            bytes => self.device.fetch(handle, from.offset, bytes)?,
        };
        Ok(Fetch { device: self.device.clone(), number, from: from.clone() })
    }

    /// The values, once they are there.
    pub fn fetched<T: Plain + Default>(&self, fetch: &Fetch<T>) -> Result<Vec<T>> {
        let Some(number) = fetch.number else { return self.read(&fetch.from) };
        let mut values = vec![T::default(); fetch.from.len()];
        self.waits.fetch_add(1, Relaxed);
        // SAFETY: the bytes of `values`, of which every pattern is a value.
        let out = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values.as_slice())) };
        self.device.fetched(number, out)?;
        Ok(values)
    }

    /// Asks for a kernel to run, compiled first if it is not yet.
    pub fn launch(
        &self,
        name: &str,
        entry: impl FnOnce() -> Entry,
        threads: u32,
        groups: [u32; 3],
        bindings: &[Binding],
        arguments: &[u8],
    ) -> Result<()> {
        if groups.contains(&0) {
            return Ok(());
        }
        if self.is_rehearsing() {
            if let Some(r) = lock(&self.rehearsal).as_mut()
                && !r.entries.contains_key(name)
            {
                r.entries.insert(name.to_owned(), entry());
            }
            return Ok(());
        }
        for (i, w) in bindings.iter().enumerate().filter(|(_, b)| b.access == Access::Write) {
            let overlaps =
                |b: &Binding| b.handle == w.handle && b.offset < w.offset + w.bytes && w.offset < b.offset + b.bytes;
            if let Some(j) = bindings.iter().enumerate().position(|(j, b)| j != i && overlaps(b)) {
                let why = format!("buffer {i} is written, and is part of buffer {j}, too");
                return Err(Error::Launch { kernel: name.to_owned(), why });
            }
        }
        let known = lock(&self.functions).get(name).cloned();
        let function = match known {
            Some(function) => function?,
            None => {
                let _turn = self.not_recorded("compiling")?;
                let began = Instant::now();
                let made = self.compile(&entry());
                self.compiling.fetch_add(began.elapsed().as_nanos() as u64, Relaxed);
                made?
            }
        };
        if self.checks.load(Relaxed) > 0 {
            lock(&self.checked).insert(name.to_owned());
        }
        let _turn = self.asked(bindings);
        self.launches.fetch_add(1, Relaxed);
        let launch = Launch { function, threads, groups, bindings, arguments };
        self.timed(name, bindings, || self.device.launch(&launch))
    }

    /// Asks the device's library for a product.
    pub fn multiply(&self, product: &Matmul) -> Result<()> {
        if self.is_rehearsing() {
            return Ok(());
        }
        let Matmul { w, x, y, factors, workspace, .. } = product;
        let _turn = self.asked(&[*w, *x, *y, *factors, *workspace]);
        self.timed("library", &[*w, *x, *y], || self.device.multiply(product))
    }
}
