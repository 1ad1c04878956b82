//! NVIDIA GPUs through the driver's own library, loaded when it is first wanted: the same program runs where there is none.
//!
//! The few functions used are declared here rather than taken from a crate: a library or a function that is missing (an old
//! driver) must become an error that says so, never a panic.

use super::{Compiled, Device, Function, Handle, Info, Launch, Matmul, cache, cublaslt, nvrtc};
use crate::source::{Entry, Target};
use crate::{Error, Result};
use libloading::Library;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

type Status = c_int;
type Pointer = *mut c_void;

/// `CUlaunchConfig`.
#[repr(C)]
struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: Pointer,
    attributes: *const LaunchAttribute,
    count: c_uint,
}

/// `CUlaunchAttribute` with an integer.
#[repr(C, align(8))]
struct LaunchAttribute {
    id: c_uint,
    padding: c_uint,
    value: c_int,
    rest: [u8; 60],
}

/// The driver's interface, version 12 or later.
struct Api {
    _library: Library,
    error_name: unsafe extern "C" fn(Status, *mut *const c_char) -> Status,
    device_count: unsafe extern "C" fn(*mut c_int) -> Status,
    device_get: unsafe extern "C" fn(*mut c_int, c_int) -> Status,
    device_name: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> Status,
    device_memory: unsafe extern "C" fn(*mut usize, c_int) -> Status,
    device_attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status,
    context_retain: unsafe extern "C" fn(*mut Pointer, c_int) -> Status,
    context_release: unsafe extern "C" fn(c_int) -> Status,
    context_set: unsafe extern "C" fn(Pointer) -> Status,
    memory_info: unsafe extern "C" fn(*mut usize, *mut usize) -> Status,
    stream_create: unsafe extern "C" fn(*mut Pointer, c_uint) -> Status,
    stream_destroy: unsafe extern "C" fn(Pointer) -> Status,
    stream_wait: unsafe extern "C" fn(Pointer) -> Status,
    allocate: unsafe extern "C" fn(*mut u64, usize) -> Status,
    free: unsafe extern "C" fn(u64) -> Status,
    upload: unsafe extern "C" fn(u64, *const c_void, usize, Pointer) -> Status,
    download: unsafe extern "C" fn(*mut c_void, u64, usize, Pointer) -> Status,
    module_load: unsafe extern "C" fn(*mut Pointer, *const c_void) -> Status,
    module_unload: unsafe extern "C" fn(Pointer) -> Status,
    module_function: unsafe extern "C" fn(*mut Pointer, Pointer, *const c_char) -> Status,
    #[allow(clippy::type_complexity)]
    launch: unsafe extern "C" fn(
        Pointer,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        c_uint,
        Pointer,
        *mut Pointer,
        *mut Pointer,
    ) -> Status,
    /// Absent from drivers before 12.
    launch_with: Option<unsafe extern "C" fn(*const LaunchConfig, Pointer, *mut Pointer, *mut Pointer) -> Status>,
    capture_begin: unsafe extern "C" fn(Pointer, c_int) -> Status,
    capture_end: unsafe extern "C" fn(Pointer, *mut Pointer) -> Status,
    graph_instantiate: unsafe extern "C" fn(*mut Pointer, Pointer, u64) -> Status,
    graph_launch: unsafe extern "C" fn(Pointer, Pointer) -> Status,
    graph_destroy: unsafe extern "C" fn(Pointer) -> Status,
    graph_exec_destroy: unsafe extern "C" fn(Pointer) -> Status,
    event_create: unsafe extern "C" fn(*mut Pointer, c_uint) -> Status,
    event_record: unsafe extern "C" fn(Pointer, Pointer) -> Status,
    event_elapsed: unsafe extern "C" fn(*mut f32, Pointer, Pointer) -> Status,
    event_destroy: unsafe extern "C" fn(Pointer) -> Status,
    event_wait: unsafe extern "C" fn(Pointer) -> Status,
    host_allocate: unsafe extern "C" fn(*mut Pointer, usize, c_uint) -> Status,
    host_free: unsafe extern "C" fn(Pointer) -> Status,
    /// What a profiler started with `--capture-range=cudaProfilerApi` waits for.
    profiler_start: Option<unsafe extern "C" fn() -> Status>,
    profiler_stop: Option<unsafe extern "C" fn() -> Status>,
    driver_version: c_int,
}

fn load() -> std::result::Result<Api, String> {
    let usual: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };
    let names = super::library_names("MARLIN_CUDA_DRIVER", usual);
    // SAFETY: the driver's initialisers ask nothing of the caller.
    let library = names.iter().find_map(|name| unsafe { Library::new(name) }.ok());
    let library = library.ok_or_else(|| format!("there is no NVIDIA driver ({} is not installed)", names[0]))?;
    macro_rules! symbol {
        ($name:literal) => {
            // SAFETY: the signature is that of cuda.h.
            *unsafe { library.get($name) }.map_err(|e| format!("the NVIDIA driver is too old: {e}"))?
        };
    }
    let init: unsafe extern "C" fn(c_uint) -> Status = symbol!(b"cuInit");
    let ask: unsafe extern "C" fn(*mut c_int) -> Status = symbol!(b"cuDriverGetVersion");
    let mut driver_version = 0;
    // SAFETY: the first call of all; then an integer to write to.
    let status = unsafe {
        ask(&mut driver_version);
        init(0)
    };
    if status != 0 {
        return Err(format!("the NVIDIA driver does not start (error {status}): is there a GPU?"));
    }
    Ok(Api {
        error_name: symbol!(b"cuGetErrorName"),
        device_count: symbol!(b"cuDeviceGetCount"),
        device_get: symbol!(b"cuDeviceGet"),
        device_name: symbol!(b"cuDeviceGetName"),
        device_memory: symbol!(b"cuDeviceTotalMem_v2"),
        device_attribute: symbol!(b"cuDeviceGetAttribute"),
        context_retain: symbol!(b"cuDevicePrimaryCtxRetain"),
        context_release: symbol!(b"cuDevicePrimaryCtxRelease_v2"),
        context_set: symbol!(b"cuCtxSetCurrent"),
        memory_info: symbol!(b"cuMemGetInfo_v2"),
        stream_create: symbol!(b"cuStreamCreate"),
        stream_destroy: symbol!(b"cuStreamDestroy_v2"),
        stream_wait: symbol!(b"cuStreamSynchronize"),
        allocate: symbol!(b"cuMemAlloc_v2"),
        free: symbol!(b"cuMemFree_v2"),
        upload: symbol!(b"cuMemcpyHtoDAsync_v2"),
        download: symbol!(b"cuMemcpyDtoHAsync_v2"),
        module_load: symbol!(b"cuModuleLoadData"),
        module_unload: symbol!(b"cuModuleUnload"),
        module_function: symbol!(b"cuModuleGetFunction"),
        launch: symbol!(b"cuLaunchKernel"),
        // SAFETY: the signature is that of cuda.h.
        launch_with: unsafe { library.get(b"cuLaunchKernelEx") }.ok().map(|f| *f),
        // SAFETY: as above.
        profiler_start: unsafe { library.get(b"cuProfilerStart") }.ok().map(|f| *f),
        // SAFETY: as above.
        profiler_stop: unsafe { library.get(b"cuProfilerStop") }.ok().map(|f| *f),
        capture_begin: symbol!(b"cuStreamBeginCapture_v2"),
        capture_end: symbol!(b"cuStreamEndCapture"),
        graph_instantiate: symbol!(b"cuGraphInstantiateWithFlags"),
        graph_launch: symbol!(b"cuGraphLaunch"),
        graph_destroy: symbol!(b"cuGraphDestroy"),
        graph_exec_destroy: symbol!(b"cuGraphExecDestroy"),
        event_create: symbol!(b"cuEventCreate"),
        event_record: symbol!(b"cuEventRecord"),
        event_elapsed: symbol!(b"cuEventElapsedTime"),
        event_destroy: symbol!(b"cuEventDestroy_v2"),
        event_wait: symbol!(b"cuEventSynchronize"),
        host_allocate: symbol!(b"cuMemHostAlloc"),
        host_free: symbol!(b"cuMemFreeHost"),
        driver_version,
        _library: library,
    })
}

fn api() -> Result<&'static Api> {
    static API: OnceLock<std::result::Result<Api, String>> = OnceLock::new();
    API.get_or_init(load).as_ref().map_err(|why| Error::Absent(why.clone()))
}

impl Api {
    fn check(&self, what: &str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let mut name = std::ptr::null();
        // SAFETY: a pointer to write to; names are static strings.
        let name = unsafe {
            (self.error_name)(status, &mut name);
            if name.is_null() { "unknown".into() } else { CStr::from_ptr(name).to_string_lossy() }
        };
        Err(Error::Device(format!("CUDA: {what}: {name} ({status})")))
    }
}

/// Memory of the host that the GPU writes by itself, and the event behind the latest copy to it.
struct Pinned {
    memory: usize,
    bytes: usize,
    event: usize,
}

/// Copies to the host under way or not yet forgotten, by number, and memory for more.
#[derive(Default)]
struct Fetches {
    made: HashMap<u64, Pinned>,
    free: Vec<Pinned>,
    next: u64,
}

/// One GPU, one stream.
pub struct Cuda {
    api: &'static Api,
    info: Info,
    device: c_int,
    context: usize,
    stream: usize,
    modules: Mutex<HashMap<u64, usize>>,
    /// A kernel may take its place before the one ahead of it has ended; see `begin` in the prelude.
    overlaps: bool,
    /// Executable graphs with the graphs they were made of.
    graphs: Mutex<HashMap<u64, usize>>,
    fetches: Mutex<Fetches>,
}

impl Cuda {
    /// GPU number `index` of this machine, or why it cannot be used, in one line.
    pub fn open(index: usize) -> Result<Self> {
        let api = api()?;
        let mut count = 0;
        let mut device = 0;
        let mut context: Pointer = std::ptr::null_mut();
        let mut stream: Pointer = std::ptr::null_mut();
        let mut name = [0 as c_char; 256];
        let (mut memory, mut free) = (0, 0);
        let (mut major, mut minor, mut cores) = (0, 0, 0);
        const MAJOR: c_int = 75; // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        const MINOR: c_int = 76;
        const CORES: c_int = 16; // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        // SAFETY: every call gets pointers to variables of its types; the context is made current before what needs one.
        unsafe {
            api.check("counting devices", (api.device_count)(&mut count))?;
            if index >= count as usize {
                return Err(Error::Absent(format!("there is no NVIDIA GPU number {index}; the driver sees {count}")));
            }
            api.check("device", (api.device_get)(&mut device, index as c_int))?;
            api.check("name", (api.device_name)(name.as_mut_ptr(), name.len() as c_int, device))?;
            api.check("memory", (api.device_memory)(&mut memory, device))?;
            api.check("attribute", (api.device_attribute)(&mut major, MAJOR, device))?;
            api.check("attribute", (api.device_attribute)(&mut minor, MINOR, device))?;
            api.check("attribute", (api.device_attribute)(&mut cores, CORES, device))?;
            if major < 8 {
                return Err(Error::Absent(format!(
                    "this NVIDIA GPU is of compute capability {major}.{minor}; 8.0 is needed"
                )));
            }
            nvrtc::version()?;
            api.check("context", (api.context_retain)(&mut context, device))?;
            api.check("context", (api.context_set)(context))?;
            api.check("stream", (api.stream_create)(&mut stream, 1))?;
            api.check("memory", (api.memory_info)(&mut free, &mut memory))?;
        }
        // SAFETY: the driver has written a string that ends within the array.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let info = Info {
            name,
            architecture: format!("sm_{major}{minor}"),
            driver: format!("{}.{}", api.driver_version / 1000, api.driver_version % 1000 / 10),
            memory: free,
            cores: cores.max(0) as u32,
            longest_buffer: memory,
        };
        // For finding out what is wrong, if something is.
        let serial = std::env::var_os("MARLIN_CUDA_SERIAL").is_some_and(|v| v == "1");
        let overlaps = major >= 9 && !serial && api.launch_with.is_some();
        Ok(Self {
            overlaps,
            api,
            info,
            device,
            context: context as usize,
            stream: stream as usize,
            modules: Mutex::default(),
            graphs: Mutex::default(),
            fetches: Mutex::default(),
        })
    }

    fn stream(&self) -> Pointer {
        self.stream as Pointer
    }

    fn fetches(&self) -> MutexGuard<'_, Fetches> {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory that the GPU can write by itself; the context is current.
    fn pin(&self, bytes: usize) -> Result<Pinned> {
        let bytes = bytes.next_power_of_two().max(4096);
        let (mut memory, mut event): (Pointer, Pointer) = (std::ptr::null_mut(), std::ptr::null_mut());
        const NO_TIMES: c_uint = 2; // CU_EVENT_DISABLE_TIMING
        // SAFETY: variables to write to; the memory is freed if there is no event for it.
        unsafe {
            self.api.check("pinned memory", (self.api.host_allocate)(&mut memory, bytes, 0))?;
            let made = self.api.check("event", (self.api.event_create)(&mut event, NO_TIMES));
            if made.is_err() {
                (self.api.host_free)(memory);
            }
            made?;
        }
        Ok(Pinned { memory: memory as usize, bytes, event: event as usize })
    }

    /// Makes the context current in this thread.
    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        self.api.check("context", unsafe { (self.api.context_set)(self.context as Pointer) })
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        _ = self.wait();
        let modules = std::mem::take(self.modules.get_mut().unwrap_or_else(PoisonError::into_inner));
        let graphs = std::mem::take(self.graphs.get_mut().unwrap_or_else(PoisonError::into_inner));
        let fetches = std::mem::take(self.fetches.get_mut().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: everything here was made by `self`, and nothing runs any more.
        unsafe {
            for (exec, graph) in graphs {
                (self.api.graph_exec_destroy)(exec as Pointer);
                (self.api.graph_destroy)(graph as Pointer);
            }
            for module in modules.into_values() {
                (self.api.module_unload)(module as Pointer);
            }
            for pinned in fetches.made.into_values().chain(fetches.free) {
                (self.api.event_destroy)(pinned.event as Pointer);
                (self.api.host_free)(pinned.memory as Pointer);
            }
            (self.api.stream_destroy)(self.stream());
            (self.api.context_release)(self.device);
        }
    }
}

impl Device for Cuda {
    fn info(&self) -> &Info {
        &self.info
    }

    fn target(&self) -> Target {
        Target::Cuda
    }

    fn allocate(&self, bytes: usize) -> Result<Handle> {
        self.enter()?;
        let mut address = 0;
        const OUT_OF_MEMORY: Status = 2; // CUDA_ERROR_OUT_OF_MEMORY
        // SAFETY: a variable to write to.
        match unsafe { (self.api.allocate)(&mut address, bytes) } {
            OUT_OF_MEMORY => Err(Error::OutOfMemory { bytes, active: 0, cap: 0 }),
            status => self.api.check(&format!("allocating {bytes} bytes"), status).map(|()| Handle(address)),
        }
    }

    fn free(&self, handle: Handle) {
        // What fails here has nobody to tell. Freeing waits for the stream by itself.
        if self.enter().is_ok() {
            // SAFETY: the pool frees each of its allocations once.
            unsafe { (self.api.free)(handle.0) };
        }
    }

    fn upload(&self, to: Handle, offset: usize, data: &[u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the pool has checked the range; from pageable memory the driver has copied `data` when this returns.
        let status =
            unsafe { (self.api.upload)(to.0 + offset as u64, data.as_ptr().cast(), data.len(), self.stream()) };
        self.api.check("upload", status)
    }

    fn download(&self, from: Handle, offset: usize, out: &mut [u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the pool has checked the range; the stream is waited for while `out` is borrowed.
        let status =
            unsafe { (self.api.download)(out.as_mut_ptr().cast(), from.0 + offset as u64, out.len(), self.stream()) };
        self.api.check("download", status)?;
        self.wait()
    }

    fn fetch(&self, from: Handle, offset: usize, bytes: usize) -> Result<Option<u64>> {
        self.enter()?;
        let mut fetches = self.fetches();
        let found = fetches.free.iter().position(|p| p.bytes >= bytes);
        // A copy that nobody waited for may still be under way; the next one follows it on the stream.
        let pinned = match found {
            Some(i) => fetches.free.swap_remove(i),
            None => self.pin(bytes)?,
        };
        // SAFETY: the pool has checked the range; the pinned memory has room for it and lives until it is forgotten and used anew.
        let status = unsafe {
            let (to, from) = (pinned.memory as Pointer, from.0 + offset as u64);
            match (self.api.download)(to, from, bytes, self.stream()) {
                0 => (self.api.event_record)(pinned.event as Pointer, self.stream()),
                status => status,
            }
        };
        fetches.next += 1;
        let number = fetches.next;
        fetches.made.insert(number, pinned);
        self.api.check("a copy to the host", status)?;
        Ok(Some(number))
    }

    fn fetched(&self, number: u64, out: &mut [u8]) -> Result<()> {
        self.enter()?;
        let place = self.fetches().made.get(&number).map(|p| (p.memory, p.bytes, p.event));
        let (memory, _, event) = place
            .filter(|(_, bytes, _)| *bytes >= out.len())
            .ok_or_else(|| Error::Device(format!("CUDA: there is no copy {number} of {} bytes", out.len())))?;
        // SAFETY: an event of ours, recorded behind the copy; then nobody writes the memory, which holds so many bytes, until the
        // copy is forgotten, which its owner does not do meanwhile.
        unsafe {
            self.api.check("waiting for a copy", (self.api.event_wait)(event as Pointer))?;
            std::ptr::copy_nonoverlapping(memory as *const u8, out.as_mut_ptr(), out.len());
        }
        Ok(())
    }

    fn forget_fetch(&self, number: u64) {
        let mut fetches = self.fetches();
        let pinned = fetches.made.remove(&number);
        fetches.free.extend(pinned);
    }

    fn compile(&self, text: &str, entries: &[Entry]) -> Result<Compiled> {
        let first = entries.first().map_or("", |e| e.name.as_str());
        let version = nvrtc::version()?;
        let Info { architecture, driver, .. } = &self.info;
        // What is specific to an architecture (`sm_90a`) is asked for where there is such a thing.
        let architecture = if architecture == "sm_90" { "sm_90a" } else { architecture };
        let path = cache::path(&[text, architecture, driver, &version], "cubin");
        self.enter()?;
        let load = |code: &[u8]| {
            let mut module: Pointer = std::ptr::null_mut();
            // SAFETY: an image as NVRTC made it, whole as far as its length in the file says; the driver refuses others.
            let status = unsafe { (self.api.module_load)(&mut module, code.as_ptr().cast()) };
            self.api.check("loading a module", status).map(|()| module)
        };
        let known = path.as_ref().and_then(|p| cache::load(p));
        // Code on disk that the driver does not take is made anew.
        let kept = known.and_then(|code| load(&code).ok());
        let cached = kept.is_some();
        let module = match kept {
            Some(module) => module,
            None => {
                let code = nvrtc::compile(text, architecture, first)?;
                if let Some(path) = &path {
                    cache::store(path, &code);
                }
                load(&code)?
            }
        };
        self.modules.lock().unwrap_or_else(PoisonError::into_inner).insert(module as u64, module as usize);
        let find = |e: &Entry| {
            let name = CString::new(e.name.as_str()).map_err(|e| Error::Device(e.to_string()))?;
            let mut function: Pointer = std::ptr::null_mut();
            const NOT_FOUND: Status = 500; // CUDA_ERROR_NOT_FOUND
            // SAFETY: a module of ours and a string.
            match unsafe { (self.api.module_function)(&mut function, module, name.as_ptr()) } {
                NOT_FOUND => Err(Error::NotFound { kernel: e.name.clone() }),
                status => self.api.check(&e.name, status).map(|()| Function(function as u64)),
            }
        };
        Ok(Compiled { functions: entries.iter().map(find).collect::<Result<_>>()?, cached })
    }

    fn launch(&self, launch: &Launch) -> Result<()> {
        self.enter()?;
        let mut addresses: Vec<u64> = launch.bindings.iter().map(|b| b.handle.0 + b.offset as u64).collect();
        let mut parameters: Vec<Pointer> = addresses.iter_mut().map(|a| std::ptr::from_mut(a).cast()).collect();
        parameters.push(launch.arguments.as_ptr().cast_mut().cast());
        let [x, y, z] = launch.groups;
        if let (true, Some(launch_with)) = (self.overlaps, self.api.launch_with) {
            const OVERLAP: c_uint = 6; // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            let attribute = LaunchAttribute { id: OVERLAP, padding: 0, value: 1, rest: [0; 60] };
            let config = LaunchConfig {
                grid: [x, y, z],
                block: [launch.threads, 1, 1],
                shared: 0,
                stream: self.stream(),
                attributes: &attribute,
                count: 1,
            };
            // SAFETY: as below; the configuration lives through the call.
            let status = unsafe {
                launch_with(&config, launch.function.0 as Pointer, parameters.as_mut_ptr(), std::ptr::null_mut())
            };
            return self.api.check("launch", status);
        }
        // SAFETY: as many parameters as the declaration has, which the launch functions see to; the driver copies them.
        let status = unsafe {
            (self.api.launch)(
                launch.function.0 as Pointer,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                0,
                self.stream(),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.api.check("launch", status)
    }

    fn multiplies(&self) -> bool {
        cublaslt::present()
    }

    fn multiply(&self, product: &Matmul) -> Result<()> {
        self.enter()?;
        cublaslt::multiply(product, self.context, self.stream())
    }

    fn submit(&self) -> Result<()> {
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: a stream of ours.
        self.api.check("waiting", unsafe { (self.api.stream_wait)(self.stream()) })
    }

    fn begin_recording(&self) -> Result<bool> {
        self.enter()?;
        // SAFETY: a stream of ours; mode 2 is relaxed: memory may be allocated meanwhile.
        self.api.check("capture", unsafe { (self.api.capture_begin)(self.stream(), 2) })?;
        Ok(true)
    }

    fn end_recording(&self) -> Result<u64> {
        self.enter()?;
        let mut graph: Pointer = std::ptr::null_mut();
        let mut exec: Pointer = std::ptr::null_mut();
        // SAFETY: ends the capture begun above; then a graph just made, destroyed if nothing can be made of it.
        unsafe {
            self.api.check("capture", (self.api.capture_end)(self.stream(), &mut graph))?;
            let made = self.api.check("graph", (self.api.graph_instantiate)(&mut exec, graph, 0));
            if made.is_err() {
                (self.api.graph_destroy)(graph);
            }
            made?;
        }
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner).insert(exec as u64, graph as usize);
        Ok(exec as u64)
    }

    fn replay(&self, recording: u64) -> Result<()> {
        self.enter()?;
        // SAFETY: a graph and a stream of ours.
        self.api.check("graph", unsafe { (self.api.graph_launch)(recording as Pointer, self.stream()) })
    }

    fn forget(&self, recording: u64) {
        let graph = self.graphs.lock().unwrap_or_else(PoisonError::into_inner).remove(&recording);
        if let (Some(graph), Ok(())) = (graph, self.enter()) {
            // SAFETY: made by `end_recording`, destroyed once; the driver lets what runs come to its end. What fails here has
            // nobody to tell.
            unsafe {
                (self.api.graph_exec_destroy)(recording as Pointer);
                (self.api.graph_destroy)(graph as Pointer);
            }
        }
    }

    fn mark(&self) -> Result<u64> {
        self.enter()?;
        let mut event: Pointer = std::ptr::null_mut();
        // SAFETY: an event to write to, and a stream of ours.
        unsafe {
            self.api.check("event", (self.api.event_create)(&mut event, 0))?;
            self.api.check("event", (self.api.event_record)(event, self.stream()))?;
        }
        Ok(event as u64)
    }

    fn seconds_between(&self, before: u64, after: u64) -> Result<f64> {
        self.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: two events made by `mark`, destroyed here.
        let status = unsafe {
            let status = (self.api.event_elapsed)(&mut milliseconds, before as Pointer, after as Pointer);
            (self.api.event_destroy)(before as Pointer);
            (self.api.event_destroy)(after as Pointer);
            status
        };
        self.api.check("event", status)?;
        Ok(f64::from(milliseconds) * 1e-3)
    }

    fn begin_capture(&self, file: Option<&std::path::Path>) -> Result<()> {
        if let Some(file) = file {
            let why =
                "an NVIDIA GPU writes no trace of its own; run this under nsys profile --capture-range=cudaProfilerApi";
            return Err(Error::Absent(format!("{}: {why}", file.display())));
        }
        self.wait()?;
        let Some(start) = self.api.profiler_start else {
            return Err(Error::Absent("this driver has no profiler".into()));
        };
        // SAFETY: asks for nothing but a context, which `wait` has made current.
        self.api.check("starting the profiler", unsafe { start() })
    }

    fn end_capture(&self) -> Result<()> {
        self.wait()?;
        let Some(stop) = self.api.profiler_stop else { return Ok(()) };
        // SAFETY: as above.
        self.api.check("stopping the profiler", unsafe { stop() })
    }

    fn free_memory(&self) -> Result<usize> {
        self.enter()?;
        let (mut free, mut all) = (0, 0);
        // SAFETY: two variables to write to.
        self.api.check("memory", unsafe { (self.api.memory_info)(&mut free, &mut all) })?;
        Ok(free)
    }
}
