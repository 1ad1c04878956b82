//! NVIDIA's run-time compiler, loaded when it is first wanted. Needs no CUDA otherwise, and no GPU.

use crate::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

/// Where the library may be, newest first; the environment variable `MARLIN_NVRTC` names another one.
const NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"]
} else {
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so", "/usr/local/cuda/lib64/libnvrtc.so"]
};

type Program = *mut c_void;

struct Api {
    _library: Library,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    version: (c_int, c_int),
}

fn load() -> std::result::Result<Api, String> {
    let names = super::library_names("MARLIN_NVRTC", NAMES);
    // SAFETY: NVRTC's initialisers are those of a C++ library and ask nothing of the caller.
    let library = names.iter().find_map(|name| unsafe { Library::new(name) }.ok());
    let library = library.ok_or_else(|| {
        format!("NVRTC is not installed ({} was looked for; the PyPI package nvidia-cuda-nvrtc has it)", names[0])
    })?;
    macro_rules! symbol {
        ($name:literal) => {
            // SAFETY: the signature is that of nvrtc.h.
            *unsafe { library.get($name) }.map_err(|e| format!("NVRTC is too old: {e}"))?
        };
    }
    let ask: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = symbol!(b"nvrtcVersion");
    let mut version = (0, 0);
    // SAFETY: two integers to write to.
    unsafe { ask(&mut version.0, &mut version.1) };
    Ok(Api {
        create: symbol!(b"nvrtcCreateProgram"),
        compile: symbol!(b"nvrtcCompileProgram"),
        log_size: symbol!(b"nvrtcGetProgramLogSize"),
        log: symbol!(b"nvrtcGetProgramLog"),
        cubin_size: symbol!(b"nvrtcGetCUBINSize"),
        cubin: symbol!(b"nvrtcGetCUBIN"),
        destroy: symbol!(b"nvrtcDestroyProgram"),
        version,
        _library: library,
    })
}

fn api() -> Result<&'static Api> {
    static API: OnceLock<std::result::Result<Api, String>> = OnceLock::new();
    API.get_or_init(load).as_ref().map_err(|why| Error::Absent(why.clone()))
}

/// The compiler's version, such as `13.5`.
pub fn version() -> Result<String> {
    api().map(|api| format!("{}.{}", api.version.0, api.version.1))
}

/// Compiles CUDA C++ to machine code of `architecture`, such as `sm_90a`.
pub fn compile(text: &str, architecture: &str, kernel: &str) -> Result<Vec<u8>> {
    let api = api()?;
    let refused = |log: String| Error::Compile { kernel: kernel.to_owned(), log };
    let source = CString::new(text).map_err(|e| refused(e.to_string()))?;
    let architecture =
        CString::new(format!("--gpu-architecture={architecture}")).map_err(|e| refused(e.to_string()))?;
    let options = [architecture.as_ptr(), c"--std=c++17".as_ptr()];
    let mut program: Program = std::ptr::null_mut();
    // SAFETY: strings and arrays that live through the calls, with their lengths; buffers of the sizes asked for.
    unsafe {
        let none = std::ptr::null();
        if (api.create)(&mut program, source.as_ptr(), c"kernels.cu".as_ptr(), 0, none, none) != 0 {
            return Err(refused("NVRTC could not begin".into()));
        }
        let status = (api.compile)(program, options.len() as c_int, options.as_ptr());
        let mut size = 0;
        let result = if status != 0 {
            (api.log_size)(program, &mut size);
            let mut log = vec![0u8; size + 1];
            (api.log)(program, log.as_mut_ptr().cast());
            Err(refused(CStr::from_ptr(log.as_ptr().cast()).to_string_lossy().into_owned()))
        } else if (api.cubin_size)(program, &mut size) != 0 {
            Err(refused("NVRTC gives no machine code".into()))
        } else {
            let mut code = vec![0u8; size];
            match (api.cubin)(program, code.as_mut_ptr().cast()) {
                0 => Ok(code),
                status => Err(refused(format!("NVRTC gives no machine code ({status})"))),
            }
        };
        (api.destroy)(&mut program);
        result
    }
}
