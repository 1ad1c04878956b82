//! A GPU that is simulated on the host, for tests.
//!
//! Kernels are compiled by the host's C++ compiler when they are first wanted, as they are on a real device, and kept on disk
//! beside this crate's build. A launch runs every thread as a fiber and watches every access (see `runtime/runtime.cc`): what
//! a real GPU would compute wrongly now and then is an error here, every time, that says what is wrong where:
//!
//! * races within a threadgroup (a missing barrier) and between threadgroups;
//! * lanes that part around an operation of their simdgroup, and barriers that not all threads reach;
//! * accesses outside the buffers a kernel was given, and writes to those it was given to read;
//! * reads of threadgroup memory that nobody has written; too much of it.
//!
//! Launches run at once, in the [`Order`] the device was made with. New memory is full of NaN.

#![allow(unsafe_code)]

use libloading::Library;
use marlin_checkpoint::Bytes;
use marlin_gpu::device::{self, Binding, Device, Function, Handle, Info, Launch, Matmul};
use marlin_gpu::source::{Access, Entry, Target};
use marlin_gpu::{Error, Result};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// In which order threads and threadgroups run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they are numbered.
    Forward,
    /// The last first.
    Backward,
    /// Threads in turns of changing order, groups likewise, by a seed.
    Shuffled(u32),
}

impl Order {
    /// Several, for tests that compare them.
    pub const ALL: [Order; 3] = [Order::Forward, Order::Backward, Order::Shuffled(1)];
}

type Kernel = unsafe extern "C" fn(*mut *mut c_void);

#[repr(C)]
struct RawBinding {
    data: *mut c_void,
    bytes: u64,
    writable: i32,
}

type Run = unsafe extern "C" fn(
    Kernel,
    c_uint,
    *const c_uint,
    *const RawBinding,
    c_uint,
    *const c_void,
    u64,
    c_int,
    c_uint,
    *mut c_char,
    u64,
) -> c_int;

/// A compiled module. Its runtime has state of its own and runs one launch at a time.
struct Module {
    library: Library,
    text: String,
    running: Mutex<()>,
}

#[derive(Clone)]
struct Loaded {
    name: String,
    kernel: Kernel,
    module: Arc<Module>,
}

/// Room between buffers, so that an index that is off by a little hits none of them.
const GUARD: usize = 4096;

/// What memory is made of, so that it is aligned.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; GUARD]);

/// A buffer: its own, between two pages of guard, or the host's.
enum Memory {
    Own(Vec<Page>),
    Borrowed(Bytes),
}

/// The simulated device.
pub struct Simulated {
    info: Info,
    order: Order,
    memory: Mutex<HashMap<u64, Memory>>,
    functions: Mutex<Vec<Loaded>>,
    recordings: Mutex<Recordings>,
    fetches: Mutex<HashMap<u64, Vec<u8>>>,
}

/// A launch that is to be run later.
struct Later {
    function: Function,
    threads: u32,
    groups: [u32; 3],
    bindings: Vec<Binding>,
    arguments: Vec<u8>,
}

#[derive(Default)]
struct Recordings {
    open: Option<Vec<Later>>,
    made: HashMap<u64, Arc<Vec<Later>>>,
    next: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn device(error: impl std::fmt::Display) -> Error {
    Error::Device(format!("simulated GPU: {error}"))
}

impl Simulated {
    /// A device whose launches run in this order.
    pub fn new(order: Order) -> Self {
        let info = Info {
            name: "simulated GPU".into(),
            architecture: "host".into(),
            driver: env!("SIM_COMPILER").into(),
            memory: 1 << 32,
            cores: 2,
            longest_buffer: 1 << 31,
        };
        let (memory, functions, recordings) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { info, order, memory, functions, recordings, fetches: Mutex::default() }
    }

    /// Why it cannot run here, if it cannot: there is no compiler.
    pub fn absent() -> Option<String> {
        let compiler = env!("SIM_COMPILER");
        let works =
            !compiler.is_empty() && Command::new(compiler).arg("--version").output().is_ok_and(|o| o.status.success());
        (!works).then(|| format!("the simulated GPU needs a C++ compiler; {compiler:?} does not run"))
    }

    /// The address of a buffer's first byte.
    fn address(&self, handle: Handle, offset: usize, bytes: usize) -> Result<*mut u8> {
        let mut memory = lock(&self.memory);
        let pages = match memory.get_mut(&handle.0).ok_or_else(|| device("no such buffer"))? {
            Memory::Own(pages) => pages,
            Memory::Borrowed(held) if offset + bytes <= held.len() => return Ok(held[offset..].as_ptr().cast_mut()),
            Memory::Borrowed(held) => {
                return Err(device(format!("bytes {offset}..{} of {}", offset + bytes, held.len())));
            }
        };
        let there = (pages.len() - 2) * GUARD;
        if offset + bytes > there {
            return Err(device(format!("bytes {offset}..{} of a buffer of {there}", offset + bytes)));
        }
        // SAFETY: the first page is a guard; behind it lie `there` bytes, of which `offset` is not beyond the end.
        Ok(unsafe { pages.as_mut_ptr().cast::<u8>().add(GUARD + offset) })
    }

    fn open(&self, file: &Path, text: &str) -> Result<Arc<Module>> {
        // One module for a file, whoever asks: the system loads a library once, so its runtime must have one lock.
        static MODULES: LazyLock<Mutex<HashMap<PathBuf, Arc<Module>>>> = LazyLock::new(Mutex::default);
        let mut modules = lock(&MODULES);
        if let Some(module) = modules.get(file) {
            return Ok(module.clone());
        }
        // SAFETY: the library was made by `build` of text that this project wrote; it has no initialisers that do anything.
        let library = unsafe { Library::new(file) }.map_err(device)?;
        let module = Arc::new(Module { library, text: text.to_owned(), running: Mutex::default() });
        modules.insert(file.to_owned(), module.clone());
        Ok(module)
    }
}

/// FNV-1a of 64 bits.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

/// The shared library made of `text`, and whether it has been made before.
fn build(text: &str, first: &str) -> Result<(PathBuf, bool)> {
    let folder = Path::new(env!("SIM_RUNTIME")).with_file_name("modules");
    std::fs::create_dir_all(&folder).map_err(device)?;
    let stem = format!("{:016x}", hash(&format!("{}{text}", include_str!("../runtime/runtime.cc"))));
    let library = folder.join(format!("{stem}.so"));
    if library.exists() {
        return Ok((library, true));
    }
    // Tests run side by side: each writes its own files and then puts the result in place.
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let own = |extension: &str| folder.join(format!("{stem}.{}.{number}.{extension}", std::process::id()));
    let (source, object, made) = (own("cc"), own("o"), own("so"));
    std::fs::write(&source, text).map_err(device)?;
    let compile = |command: &mut Command| -> Result<()> {
        let output = command.output().map_err(device)?;
        if output.status.success() {
            return Ok(());
        }
        let log = String::from_utf8_lossy(&output.stderr).lines().take(40).collect::<Vec<_>>().join("\n");
        Err(Error::Compile { kernel: first.to_owned(), log })
    };
    let compiler = env!("SIM_COMPILER");
    let result = compile(
        Command::new(compiler)
            .args([
                "-std=c++17",
                "-O1",
                "-fPIC",
                "-fsanitize=thread",
                "-fno-exceptions",
                "-fno-rtti",
                "-ffp-contract=off",
                "-w",
            ])
            // What -march=native would do to half precision on some machines is not what is tested.
            .args(["-x", "c++", "-c"])
            .arg(&source)
            .arg("-o")
            .arg(&object),
    )
    .and_then(|()| {
        compile(Command::new(compiler).args(["-shared", "-o"]).arg(&made).arg(&object).arg(env!("SIM_RUNTIME")))
    });
    if result.is_ok() {
        std::fs::rename(&made, &library).map_err(device)?;
    }
    for file in [&source, &object] {
        // What is left behind wastes some space only.
        _ = std::fs::remove_file(file);
    }
    result.map(|()| (library, false))
}

impl Device for Simulated {
    fn info(&self) -> &Info {
        &self.info
    }

    fn target(&self) -> Target {
        Target::Host
    }

    fn allocate(&self, bytes: usize) -> Result<Handle> {
        let pages = vec![Page([0xff; GUARD]); bytes.div_ceil(GUARD) + 2];
        let handle = pages.as_ptr() as u64;
        lock(&self.memory).insert(handle, Memory::Own(pages));
        Ok(Handle(handle))
    }

    fn borrow(&self, bytes: &Bytes) -> Result<Option<(Handle, usize)>> {
        let address = bytes.as_ptr() as u64;
        // As on a Mac: mappings only, where vector loads may begin; and never the same bytes under one handle twice.
        let mut memory = lock(&self.memory);
        if !bytes.is_mapped() || bytes.is_empty() || !address.is_multiple_of(16) || memory.contains_key(&address) {
            return Ok(None);
        }
        memory.insert(address, Memory::Borrowed(bytes.clone()));
        Ok(Some((Handle(address), 0)))
    }

    fn free(&self, handle: Handle) {
        lock(&self.memory).remove(&handle.0);
    }

    fn upload(&self, to: Handle, offset: usize, data: &[u8]) -> Result<()> {
        let to = self.address(to, offset, data.len())?;
        // SAFETY: `address` has checked that so many bytes of a buffer of ours lie there.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
        Ok(())
    }

    fn download(&self, from: Handle, offset: usize, out: &mut [u8]) -> Result<()> {
        let from = self.address(from, offset, out.len())?;
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// What is there now, whatever is written afterwards.
    fn fetch(&self, from: Handle, offset: usize, bytes: usize) -> Result<Option<u64>> {
        let mut copy = vec![0; bytes];
        self.download(from, offset, &mut copy)?;
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        lock(&self.fetches).insert(number, copy);
        Ok(Some(number))
    }

    fn fetched(&self, number: u64, out: &mut [u8]) -> Result<()> {
        let fetches = lock(&self.fetches);
        let copy = fetches.get(&number).filter(|copy| copy.len() == out.len());
        out.copy_from_slice(copy.ok_or_else(|| device("no such copy"))?);
        Ok(())
    }

    fn forget_fetch(&self, number: u64) {
        lock(&self.fetches).remove(&number);
    }

    fn compile(&self, text: &str, entries: &[Entry]) -> Result<device::Compiled> {
        let first = entries.first().map_or("", |e| e.name.as_str());
        let (library, cached) = build(text, first)?;
        let module = self.open(&library, text)?;
        let mut loaded = lock(&self.functions);
        let find = |e: &Entry| {
            // SAFETY: entry points are declared with this type by `source`.
            let kernel = unsafe { module.library.get::<Kernel>(e.name.as_bytes()) };
            let kernel = kernel.map_err(|_| Error::NotFound { kernel: e.name.clone() })?;
            loaded.push(Loaded { name: e.name.clone(), kernel: *kernel, module: module.clone() });
            Ok(Function(loaded.len() as u64 - 1))
        };
        Ok(device::Compiled { functions: entries.iter().map(find).collect::<Result<_>>()?, cached })
    }

    fn begin_recording(&self) -> Result<bool> {
        lock(&self.recordings).open = Some(Vec::new());
        Ok(true)
    }

    fn end_recording(&self) -> Result<u64> {
        let mut all = lock(&self.recordings);
        let made = all.open.take().ok_or_else(|| device("nothing is recorded"))?;
        all.next += 1;
        let number = all.next;
        all.made.insert(number, Arc::new(made));
        Ok(number)
    }

    fn replay(&self, recording: u64) -> Result<()> {
        let all = lock(&self.recordings).made.get(&recording).cloned();
        all.ok_or_else(|| device("no such recording"))?.iter().try_for_each(|l| {
            let Later { function, threads, groups, .. } = *l;
            self.launch(&Launch { function, threads, groups, bindings: &l.bindings, arguments: &l.arguments })
        })
    }

    fn forget(&self, recording: u64) {
        lock(&self.recordings).made.remove(&recording);
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        if let Some(open) = &mut lock(&self.recordings).open {
            let Launch { function, threads, groups, .. } = *launch;
            let (bindings, arguments) = (launch.bindings.to_vec(), launch.arguments.to_vec());
            open.push(Later { function, threads, groups, bindings, arguments });
            return Ok(());
        }
        let compiled = lock(&self.functions).get(launch.function.0 as usize).cloned();
        let Loaded { name, kernel, module } = compiled.ok_or_else(|| device("no such kernel"))?;
        let raw = |b: &Binding| -> Result<RawBinding> {
            let borrowed = matches!(lock(&self.memory).get(&b.handle.0), Some(Memory::Borrowed(_)));
            if borrowed && b.access == Access::Write {
                return Err(device("a kernel would write the host's memory"));
            }
            let data = self.address(b.handle, b.offset, b.bytes)?.cast();
            Ok(RawBinding { data, bytes: b.bytes as u64, writable: (b.access == Access::Write).into() })
        };
        let bindings = launch.bindings.iter().map(raw).collect::<Result<Vec<_>>>()?;
        let (order, seed) = match self.order {
            Order::Forward => (0, 0),
            Order::Backward => (1, 0),
            Order::Shuffled(seed) => (2, seed),
        };
        let mut text = [0 as c_char; 512];
        let running = lock(&module.running);
        // SAFETY: the runtime linked into every module has this signature; pointers and lengths belong together, and the kernel
        // touches nothing else, or is stopped.
        let good = unsafe {
            let run = module.library.get::<Run>(b"sim_run").map_err(device)?;
            run(
                kernel,
                launch.threads,
                launch.groups.as_ptr(),
                bindings.as_ptr(),
                bindings.len() as c_uint,
                launch.arguments.as_ptr().cast(),
                launch.arguments.len() as u64,
                order,
                seed,
                text.as_mut_ptr(),
                text.len() as u64,
            )
        };
        drop(running);
        if good != 0 {
            return Ok(());
        }
        // SAFETY: the runtime writes a string that ends within the array.
        let why = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned();
        Err(Error::Launch { kernel: name, why: quote_lines(&why, &module.text) })
    }

    fn multiplies(&self) -> bool {
        true
    }

    /// What a library would compute, plainly.
    fn multiply(&self, m: &Matmul) -> Result<()> {
        let floats = |b: &Binding, n: usize| -> Result<Vec<f32>> {
            let mut bytes = vec![0u8; 4 * n];
            self.download(b.handle, b.offset, &mut bytes)?;
            Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let halves = |b: &Binding, n: usize| -> Result<Vec<f32>> {
            let mut bytes = vec![0u8; 2 * n];
            self.download(b.handle, b.offset, &mut bytes)?;
            Ok(bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect())
        };
        let (w, x) = (halves(&m.w, m.rows * m.cols)?, halves(&m.x, m.batch * m.cols)?);
        let factor = floats(&m.factors, 1)?[0];
        for (i, x) in x.chunks_exact(m.cols).enumerate() {
            let products = w.chunks_exact(m.cols).map(|w| factor * w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>());
            let line: Vec<u8> = products.flat_map(f32::to_le_bytes).collect();
            if 4 * (i * m.line + m.rows) > m.y.bytes {
                return Err(device("a product does not fit its place"));
            }
            self.upload(m.y.handle, m.y.offset + 4 * i * m.line, &line)?;
        }
        Ok(())
    }

    fn submit(&self) -> Result<()> {
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }
}

/// Puts the source of every "line N" behind the message.
fn quote_lines(why: &str, text: &str) -> String {
    let mut out = why.to_owned();
    let mut numbers: Vec<usize> = why
        .split("line ")
        .skip(1)
        .filter_map(|s| s.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    for n in numbers {
        if let Some(line) = n.checked_sub(1).and_then(|n| text.lines().nth(n)) {
            out.push_str(&format!("\n  {n}: {}", line.trim()));
        }
    }
    out
}
