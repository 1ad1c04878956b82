//! What a GPU must be able to do.

mod cache;
#[cfg(not(target_os = "macos"))]
mod cublaslt;
#[cfg(not(target_os = "macos"))]
pub mod cuda;
mod hazards;
#[cfg(target_os = "macos")]
pub mod metal;
#[cfg(not(target_os = "macos"))]
pub mod nvrtc;

pub use hazards::Hazards;

use crate::Result;
use crate::source::{Access, Entry, Target};
use marlin_checkpoint::Bytes;

/// The names of a library to try, one after another: the one that an environment variable has, and then no other, or the usual ones.
#[cfg(not(target_os = "macos"))]
fn library_names(variable: &str, usual: &[&str]) -> Vec<String> {
    match std::env::var(variable).ok().filter(|name| !name.is_empty()) {
        Some(named) => vec![named],
        None => usual.iter().map(|name| (*name).to_owned()).collect(),
    }
}

/// What a device is.
#[derive(Clone, Debug)]
pub struct Info {
    /// What it is called, such as `NVIDIA H200`.
    pub name: String,
    /// What code is compiled for, such as `sm_90` or `apple9`.
    pub architecture: String,
    /// The driver's version: with the architecture and the source, the key of compiled code.
    pub driver: String,
    /// Bytes of memory that the device may use.
    pub memory: usize,
    /// Multiprocessors; 0 where that is not known.
    pub cores: u32,
    /// The longest buffer.
    pub longest_buffer: usize,
}

/// Memory of a device: what the device calls it (an address, an object), never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(pub u64);

/// A compiled kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function(pub u64);

/// What was made of a module.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Its kernels, in the order of the entries.
    pub functions: Vec<Function>,
    /// Whether code was found on disk.
    pub cached: bool,
}

/// A part of a buffer that a kernel is bound to.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// The buffer.
    pub handle: Handle,
    /// Bytes from its beginning.
    pub offset: usize,
    /// Bytes that the kernel may touch.
    pub bytes: usize,
    /// How.
    pub access: Access,
}

/// A kernel, where it runs and on what.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel.
    pub function: Function,
    /// Threads of a group.
    pub threads: u32,
    /// Groups in each dimension.
    pub groups: [u32; 3],
    /// Buffers, in the order of the declaration.
    pub bindings: &'a [Binding],
    /// The arguments' structure.
    pub arguments: &'a [u8],
}

/// A product of matrices of halves: `y[m][n] = factors[0] * sum over k of x[m][k] * w[n][k]`, as floats.
#[derive(Clone, Copy, Debug)]
pub struct Matmul {
    /// Rows of x and y.
    pub batch: usize,
    /// Rows of w, outputs.
    pub rows: usize,
    /// Columns of w and x, inputs.
    pub cols: usize,
    /// Floats from a row of y to the next.
    pub line: usize,
    /// `[rows, cols]`.
    pub w: Binding,
    /// `[batch, cols]`.
    pub x: Binding,
    /// What sums are multiplied with, and 0: two floats.
    pub factors: Binding,
    /// `[batch, line]`, of which the first `rows` of each row are written.
    pub y: Binding,
    /// Memory to work in.
    pub workspace: Binding,
}

/// A GPU: memory, compilation, and one queue on which everything happens in the order in which it was asked for.
///
/// Nothing but [`Device::download`], [`Device::fetched`] and [`Device::wait`] waits. Handles belong to the device that gave them; the pool
/// ([`Gpu`](crate::Gpu)) is their only user, and frees each once, after the last launch that uses it was asked for.
pub trait Device: Send + Sync + 'static {
    /// What it is.
    fn info(&self) -> &Info;

    /// Whose text it compiles.
    fn target(&self) -> Target;

    /// `bytes` (at least 1) of memory with undefined contents, at a multiple of 256. What does not fit is
    /// [`OutOfMemory`](crate::Error::OutOfMemory), of which the caller knows the other numbers.
    fn allocate(&self, bytes: usize) -> Result<Handle>;

    /// Bytes of the host used where they lie, without a copy, where the device can: the handle, and where they begin in it. Kernels
    /// only read them; they are kept until the handle is freed.
    fn borrow(&self, bytes: &Bytes) -> Result<Option<(Handle, usize)>> {
        let _ = bytes;
        Ok(None)
    }

    /// Gives memory back, once everything asked for before is done with it.
    fn free(&self, handle: Handle);

    /// Copies `data` to the device, in order with launches; `data` may be overwritten when this returns.
    fn upload(&self, to: Handle, offset: usize, data: &[u8]) -> Result<()>;

    /// Copies from the device once everything asked for before is done.
    fn download(&self, from: Handle, offset: usize, out: &mut [u8]) -> Result<()>;

    /// Begins to copy to the host what everything asked for before leaves in a buffer, and gives a number for [`Device::fetched`];
    /// `None` if the device cannot, and [`Device::download`] must do. Nothing writes those bytes before the copy is forgotten.
    fn fetch(&self, from: Handle, offset: usize, bytes: usize) -> Result<Option<u64>> {
        let _ = (from, offset, bytes);
        Ok(None)
    }

    /// Waits for such a copy, but for nothing that was asked for after it.
    fn fetched(&self, number: u64, out: &mut [u8]) -> Result<()> {
        let _ = out;
        Err(crate::Error::Device(format!("there is no copy {number}")))
    }

    /// A copy is needed no more.
    fn forget_fetch(&self, number: u64) {
        let _ = number;
    }

    /// Compiles the text of a module, or takes what was made of the same text before, and finds its entry points. May be called
    /// from several threads at a time.
    fn compile(&self, text: &str, entries: &[Entry]) -> Result<Compiled>;

    /// Asks for a kernel to run.
    fn launch(&self, launch: &Launch) -> Result<()>;

    /// Whether it has a library of matrix products.
    fn multiplies(&self) -> bool {
        false
    }

    /// Asks for a product by that library.
    fn multiply(&self, product: &Matmul) -> Result<()> {
        let _ = product;
        Err(crate::Error::Absent("this device has no library of matrix products".into()))
    }

    /// Lets what was asked for begin.
    fn submit(&self) -> Result<()>;

    /// Waits for everything asked for.
    fn wait(&self) -> Result<()>;

    /// From now on launches are written down instead of being run, until [`Device::end_recording`]; false if the device cannot. Nothing
    /// else is asked for meanwhile.
    fn begin_recording(&self) -> Result<bool> {
        Ok(false)
    }

    /// What was written down, by a number.
    fn end_recording(&self) -> Result<u64> {
        Err(crate::Error::Device("this device records nothing".into()))
    }

    /// Asks for all launches of a recording.
    fn replay(&self, recording: u64) -> Result<()> {
        Err(crate::Error::Device(format!("there is no recording {recording}")))
    }

    /// A recording is needed no more.
    fn forget(&self, recording: u64) {
        let _ = recording;
    }

    /// A mark behind everything asked for before, by a number.
    fn mark(&self) -> Result<u64> {
        // Without a clock of the device, its work is awaited.
        self.wait()?;
        static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
        Ok(START.elapsed().as_nanos() as u64)
    }

    /// Seconds that passed on the device between two marks, both of which have been reached. Marks are used once.
    fn seconds_between(&self, before: u64, after: u64) -> Result<f64> {
        Ok(after.saturating_sub(before) as f64 * 1e-9)
    }

    /// Everything launched until [`Device::end_capture`] is written down for the system's profiler: into `file` (`.gputrace`) by Metal,
    /// for a profiler that watches this process by CUDA.
    fn begin_capture(&self, file: Option<&std::path::Path>) -> Result<()> {
        let _ = file;
        Err(crate::Error::Absent("this device has no profiler to capture for".into()))
    }

    /// Ends what [`Device::begin_capture`] began.
    fn end_capture(&self) -> Result<()> {
        Ok(())
    }

    /// Bytes of memory that are free.
    fn free_memory(&self) -> Result<usize> {
        Ok(self.info().memory)
    }
}
