//! NVIDIA's library of matrix products, loaded when it is first wanted. Where it is missing, its products are computed by our kernels.

use super::Matmul;
use crate::{Error, Result};
use libloading::Library;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

type Status = c_int;
type Pointer = *mut c_void;

/// Where the library may be, newest first; the environment variable `MARLIN_CUBLASLT` names another one.
const NAMES: &[&str] = if cfg!(windows) {
    &["cublasLt64_13.dll", "cublasLt64_12.dll"]
} else {
    &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so", "/usr/local/cuda/lib64/libcublasLt.so"]
};

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

struct Api {
    _library: Library,
    create: unsafe extern "C" fn(*mut Pointer) -> Status,
    operation_create: unsafe extern "C" fn(*mut Pointer, c_int, c_int) -> Status,
    operation_set: unsafe extern "C" fn(Pointer, c_int, *const c_void, usize) -> Status,
    layout_create: unsafe extern "C" fn(*mut Pointer, c_int, u64, u64, i64) -> Status,
    preference_create: unsafe extern "C" fn(*mut Pointer) -> Status,
    preference_set: unsafe extern "C" fn(Pointer, c_int, *const c_void, usize) -> Status,
    #[allow(clippy::type_complexity)]
    heuristic: unsafe extern "C" fn(
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        Pointer,
        c_int,
        *mut Heuristic,
        *mut c_int,
    ) -> Status,
    #[allow(clippy::type_complexity)]
    matmul: unsafe extern "C" fn(
        Pointer,
        Pointer,
        *const c_void,
        *const c_void,
        Pointer,
        *const c_void,
        Pointer,
        *const c_void,
        *const c_void,
        Pointer,
        *mut c_void,
        Pointer,
        *const Heuristic,
        *mut c_void,
        usize,
        Pointer,
    ) -> Status,
}

fn load() -> Option<Api> {
    let names = super::library_names("MARLIN_CUBLASLT", NAMES);
    // SAFETY: the initialisers are those of a C++ library and ask nothing of the caller.
    let library = names.iter().find_map(|name| unsafe { Library::new(name) }.ok())?;
    macro_rules! symbol {
        ($name:literal) => {
            // SAFETY: the signature is that of cublasLt.h.
            *unsafe { library.get($name) }.ok()?
        };
    }
    Some(Api {
        create: symbol!(b"cublasLtCreate"),
        operation_create: symbol!(b"cublasLtMatmulDescCreate"),
        operation_set: symbol!(b"cublasLtMatmulDescSetAttribute"),
        layout_create: symbol!(b"cublasLtMatrixLayoutCreate"),
        preference_create: symbol!(b"cublasLtMatmulPreferenceCreate"),
        preference_set: symbol!(b"cublasLtMatmulPreferenceSetAttribute"),
        heuristic: symbol!(b"cublasLtMatmulAlgoGetHeuristic"),
        matmul: symbol!(b"cublasLtMatmul"),
        _library: library,
    })
}

fn api() -> Option<&'static Api> {
    static API: OnceLock<Option<Api>> = OnceLock::new();
    API.get_or_init(load).as_ref()
}

/// Whether the library is there.
pub fn present() -> bool {
    api().is_some()
}

fn check(what: &str, status: Status) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(Error::Device(format!("cuBLASLt: {what}: status {status}"))) }
}

/// A product of certain sizes: descriptions that live as long as the process.
#[derive(Clone, Copy)]
struct Plan {
    operation: usize,
    w: usize,
    x: usize,
    y: usize,
    algorithm: Heuristic,
}

/// The library's state for a context.
struct Context {
    handle: usize,
    operation: usize,
    preference: usize,
    plans: HashMap<[usize; 4], Plan>,
}

const HALF: c_int = 2; // CUDA_R_16F
const SINGLE: c_int = 0; // CUDA_R_32F

impl Context {
    /// For the context that is current in this thread.
    fn new(api: &Api, workspace: usize) -> Result<Self> {
        const COMPUTE: c_int = 68; // CUBLAS_COMPUTE_32F
        const POINTER_MODE: c_int = 2;
        const TRANSPOSE_A: c_int = 3;
        const MOST_WORKSPACE: c_int = 1;
        let (mut handle, mut operation, mut preference): (Pointer, Pointer, Pointer) =
            (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        let set = |i: c_int, attribute: c_int, operation: Pointer| {
            // SAFETY: a description just made, and a number of the attribute's size.
            check("operation", unsafe {
                (api.operation_set)(operation, attribute, std::ptr::from_ref(&i).cast(), size_of::<c_int>())
            })
        };
        // SAFETY: variables to write to; attributes with their sizes.
        unsafe {
            check("create", (api.create)(&mut handle))?;
            check("operation", (api.operation_create)(&mut operation, COMPUTE, SINGLE))?;
            check("preference", (api.preference_create)(&mut preference))?;
            let bytes = std::ptr::from_ref(&workspace).cast();
            check("preference", (api.preference_set)(preference, MOST_WORKSPACE, bytes, size_of::<usize>()))?;
        }
        set(1, TRANSPOSE_A, operation)?;
        set(1, POINTER_MODE, operation)?; // factors are in the device's memory
        let plans = HashMap::new();
        Ok(Self { handle: handle as usize, operation: operation as usize, preference: preference as usize, plans })
    }

    fn plan(&mut self, api: &Api, m: &Matmul) -> Result<Plan> {
        let key = [m.batch, m.rows, m.cols, m.line];
        if let Some(plan) = self.plans.get(&key) {
            return Ok(*plan);
        }
        let layout = |kind, rows: usize, cols: usize, line: usize| {
            let mut made: Pointer = std::ptr::null_mut();
            // SAFETY: a variable to write to.
            let status = unsafe { (api.layout_create)(&mut made, kind, rows as u64, cols as u64, line as i64) };
            check("layout", status).map(|()| made)
        };
        // Columns first, as the library sees it: y^T [rows, batch] = (w^T [cols, rows])^T * x^T [cols, batch].
        let w = layout(HALF, m.cols, m.rows, m.cols)?;
        let x = layout(HALF, m.cols, m.batch, m.cols)?;
        let y = layout(SINGLE, m.rows, m.batch, m.line)?;
        let mut algorithm = Heuristic { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let mut found = 0;
        let [handle, operation, preference] = [self.handle, self.operation, self.preference].map(|p| p as Pointer);
        // SAFETY: descriptions of this library, and room for one result.
        let status =
            unsafe { (api.heuristic)(handle, operation, w, x, y, y, preference, 1, &mut algorithm, &mut found) };
        check("heuristic", status)?;
        if found == 0 {
            return Err(Error::Device("cuBLASLt: no algorithm".into()));
        }
        let plan = Plan { operation: self.operation, w: w as usize, x: x as usize, y: y as usize, algorithm };
        self.plans.insert(key, plan);
        Ok(plan)
    }
}

/// Asks for a product on a stream of the context that is current in this thread.
pub fn multiply(m: &Matmul, context: usize, stream: Pointer) -> Result<()> {
    static CONTEXTS: Mutex<Option<HashMap<usize, Context>>> = Mutex::new(None);
    let Some(api) = api() else { return Err(Error::Absent("cuBLASLt is not installed".into())) };
    let mut contexts = CONTEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let state = match contexts.get_or_insert_default().entry(context) {
        Entry::Occupied(known) => known.into_mut(),
        Entry::Vacant(new) => new.insert(Context::new(api, m.workspace.bytes)?),
    };
    let plan = state.plan(api, m)?;
    let at = |b: &super::Binding| (b.handle.0 + b.offset as u64) as Pointer;
    let factor = at(&m.factors);
    let zero = (m.factors.handle.0 + m.factors.offset as u64 + 4) as Pointer;
    let [operation, w, x, y] = [plan.operation, plan.w, plan.x, plan.y].map(|p| p as Pointer);
    // SAFETY: descriptions made above of matrices that lie there, as the caller has seen to, and the library's own choice of algorithm with no
    // more workspace than there is.
    let status = unsafe {
        (api.matmul)(
            state.handle as Pointer,
            operation,
            factor,
            at(&m.w),
            w,
            at(&m.x),
            x,
            zero,
            at(&m.y),
            y,
            at(&m.y),
            y,
            &plan.algorithm,
            at(&m.workspace),
            m.workspace.bytes,
            stream,
        )
    };
    check("product", status)
}
