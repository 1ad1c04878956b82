//! The text of a module: a prelude, the bodies, and one entry point for every instance that is wanted.

use std::collections::BTreeMap;

/// Whose compiler reads the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Metal Shading Language 3.1.
    Metal,
    /// CUDA C++ as NVRTC reads it.
    Cuda,
    /// The host's C++17 compiler, for the simulated GPU.
    Host,
}

impl Target {
    /// Every target.
    pub const ALL: [Target; 3] = [Target::Metal, Target::Cuda, Target::Host];

    /// Whether its GPUs have tensor cores, and groups that can wait for each other's results.
    pub fn has_tensor_cores(self) -> bool {
        self != Self::Metal
    }

    /// What kernels for tensor cores use besides the prelude.
    fn tensor_prelude(self) -> &'static str {
        match self {
            Self::Metal => "",
            Self::Cuda => include_str!("../kernels/prelude/tensor_cuda.h"),
            Self::Host => include_str!("../kernels/prelude/tensor_host.h"),
        }
    }

    fn prelude(self) -> &'static str {
        match self {
            Self::Metal => include_str!("../kernels/prelude/metal.h"),
            Self::Cuda => include_str!("../kernels/prelude/cuda.h"),
            Self::Host => include_str!("../kernels/prelude/host.h"),
        }
    }
}

/// How a kernel uses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only; nobody writes it during the launch.
    Read,
    /// Writes, and perhaps reads.
    Write,
}

/// A buffer that a kernel is bound to.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its name in the body.
    pub name: &'static str,
    /// Element type in the dialect: `float`, `uint` or `uchar`.
    pub element: &'static str,
    /// How it is used.
    pub access: Access,
}

/// An instance of a kernel: everything needed to write its entry point.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Unique name, the entry point's.
    pub name: String,
    /// The file under `kernels/` that has the body.
    pub file: &'static str,
    /// The body: a function, with its template arguments if it has any.
    pub call: String,
    /// Threads of a group.
    pub threads: u32,
    /// Arrays in threadgroup memory: element type and length.
    pub shared: Vec<(&'static str, usize)>,
    /// Buffers in the order of their binding; the arguments' structure follows them.
    pub parameters: Vec<Parameter>,
    /// Name of the arguments' structure.
    pub arguments: &'static str,
    /// The text that declares the structure and those within it, by name.
    pub declarations: BTreeMap<&'static str, (usize, String)>,
}

impl Entry {
    /// Whether it is not for Metal.
    pub fn needs_tensor_cores(&self) -> bool {
        TENSOR.contains(&self.file)
    }
}

/// The bodies, in an order in which each comes after what it uses.
const FILES: &[(&str, &str)] = &[
    ("norm.h", include_str!("../kernels/norm.h")),
    ("hadamard.h", include_str!("../kernels/hadamard.h")),
    ("elementwise.h", include_str!("../kernels/elementwise.h")),
    ("rope.h", include_str!("../kernels/rope.h")),
    ("attention.h", include_str!("../kernels/attention.h")),
    ("attention_tiles.h", include_str!("../kernels/attention_tiles.h")),
    ("latent.h", include_str!("../kernels/latent.h")),
    ("route.h", include_str!("../kernels/route.h")),
    ("sample.h", include_str!("../kernels/sample.h")),
    ("draw.h", include_str!("../kernels/draw.h")),
    ("weights.h", include_str!("../kernels/weights.h")),
    ("gemv.h", include_str!("../kernels/gemv.h")),
    ("trellis.h", include_str!("../kernels/trellis.h")),
    ("gemm.h", include_str!("../kernels/gemm.h")),
    ("experts.h", include_str!("../kernels/experts.h")),
    ("simple.h", include_str!("../kernels/simple.h")),
    ("panel.h", include_str!("../kernels/panel.h")),
    ("stream.h", include_str!("../kernels/stream.h")),
    ("trellis_stream.h", include_str!("../kernels/trellis_stream.h")),
    ("grouped_stream.h", include_str!("../kernels/grouped_stream.h")),
    ("expert_mma.h", include_str!("../kernels/expert_mma.h")),
];

/// Files whose kernels need tensor cores: not for Metal.
const TENSOR: &[&str] = &["attention_tiles.h", "stream.h", "trellis_stream.h", "grouped_stream.h", "expert_mma.h"];

/// What a file uses besides the preludes.
fn needs(file: &str) -> &'static [&'static str] {
    match file {
        "draw.h" => &["sample.h"],
        "gemv.h" => &["weights.h"],
        "gemm.h" | "simple.h" => &["weights.h", "trellis.h"],
        "panel.h" => &["hadamard.h", "elementwise.h", "weights.h", "trellis.h"],
        "stream.h" => &["hadamard.h"],
        "grouped_stream.h" => &["hadamard.h", "weights.h", "stream.h"],
        "trellis_stream.h" => &["hadamard.h", "elementwise.h", "trellis.h", "stream.h"],
        "expert_mma.h" => &["hadamard.h", "elementwise.h", "weights.h", "trellis.h", "stream.h", "trellis_stream.h"],
        "experts.h" => &["weights.h", "trellis.h", "gemm.h"],
        _ => &[],
    }
}

/// The structures that bodies of a file mention, whichever of its kernels is wanted.
fn mentions(file: &str) -> Vec<BTreeMap<&'static str, (usize, String)>> {
    crate::kernels::structures(file)
}

/// The text of a module with these entry points. The same entries give the same text, so it can be the key of a cache.
pub fn module(target: Target, entries: &[Entry]) -> String {
    let mut text = String::from(target.prelude());
    text.push_str(include_str!("../kernels/prelude/common.h"));
    if entries.iter().any(Entry::needs_tensor_cores) {
        text.push_str(target.tensor_prelude());
    }
    let wanted = |file: &str| entries.iter().any(|e| e.file == file || needs(e.file).contains(&file));
    let mut structures = BTreeMap::new();
    for (file, _) in FILES.iter().filter(|(file, _)| wanted(file)) {
        mentions(file).into_iter().for_each(|m| structures.extend(m));
    }
    entries.iter().for_each(|e| structures.extend(e.declarations.clone()));
    let mut ordered: Vec<_> = structures.into_iter().collect();
    ordered.sort_by_key(|(name, (depth, _))| (*depth, *name));
    ordered.iter().for_each(|(_, (_, declaration))| text.push_str(declaration));
    for (_, body) in FILES.iter().filter(|(file, _)| wanted(file)) {
        text.push_str(body);
    }
    entries.iter().for_each(|e| text.push_str(&entry_point(target, e)));
    text
}

/// A module whose bodies are `bodies`, for tests of the simulator and the checks.
pub fn module_of(target: Target, bodies: &str, entries: &[Entry]) -> String {
    let mut text = String::from(target.prelude());
    text.push_str(include_str!("../kernels/prelude/common.h"));
    if entries.iter().any(Entry::needs_tensor_cores) {
        text.push_str(target.tensor_prelude());
    }
    let mut structures = BTreeMap::new();
    entries.iter().for_each(|e| structures.extend(e.declarations.clone()));
    structures.iter().for_each(|(_, (_, declaration))| text.push_str(declaration));
    text.push_str(bodies);
    entries.iter().for_each(|e| text.push_str(&entry_point(target, e)));
    text
}

fn entry_point(target: Target, e: &Entry) -> String {
    let Entry { name, threads, arguments, .. } = e;
    let constness = |p: &Parameter| if p.access == Access::Read { "const " } else { "" };
    let numbered = || e.parameters.iter().enumerate();
    let shared = |declare: &dyn Fn(usize, &str, usize) -> String| -> String {
        e.shared
            .iter()
            .enumerate()
            .map(|(i, (element, length))| format!("  {};\n", declare(i, element, *length)))
            .collect()
    };
    let (head, body, here) = match target {
        Target::Metal => {
            let buffers: String = numbered()
                .map(|(i, p)| format!("device {}{} *{} [[buffer({i})]], ", constness(p), p.element, p.name))
                .collect();
            let head = format!(
                "[[kernel, max_total_threads_per_threadgroup({threads})]] ENTRY void {name}({buffers}\
                 constant {arguments} &arguments [[buffer({})]], uint3 group_at [[threadgroup_position_in_grid]], \
                 uint thread_at [[thread_index_in_threadgroup]], uint lane_at [[thread_index_in_simdgroup]], \
                 uint simd_at [[simdgroup_index_in_threadgroup]])",
                e.parameters.len()
            );
            let arrays =
                shared(&|i, element, length| format!("SHARED_STORAGE threadgroup {element} shared{i}[{length}]"));
            (head, arrays, "here(group_at, thread_at, lane_at, simd_at)")
        }
        Target::Cuda => {
            let restrict = |p: &Parameter| if p.access == Access::Read { " __restrict__" } else { "" };
            let buffers: String = e
                .parameters
                .iter()
                .map(|p| format!("{}{} *{} {}, ", constness(p), p.element, restrict(p), p.name))
                .collect();
            let head = format!(
                "extern \"C\" __global__ void __launch_bounds__({threads}) {name}({buffers}const {arguments} arguments)"
            );
            let arrays =
                shared(&|i, element, length| format!("__shared__ __align__(16) {element} shared{i}[{length}]"));
            (head, arrays, "here()")
        }
        Target::Host => {
            let buffers: String = numbered()
                .map(|(i, p)| {
                    let (c, t) = (constness(p), p.element);
                    format!("  {c}{t} *{} = ({c}{t} *)buffers[{i}];\n", p.name)
                })
                .collect();
            let head = format!("extern \"C\" __attribute__((no_sanitize(\"thread\"))) void {name}(void **buffers)");
            let last = e.parameters.len();
            let arrays = shared(&|i, element, length| {
                format!("{element} *shared{i} = ({element} *)sim_shared({i}, sizeof({element}) * {length})")
            });
            let more = if e.needs_tensor_cores() { "  sim_more_shared();\n" } else { "" };
            let body = format!(
                "{more}{buffers}  const {arguments} &arguments = *(const {arguments} *)buffers[{last}];\n{arrays}"
            );
            (head, body, "here()")
        }
    };
    let names = e.parameters.iter().map(|p| p.name.to_owned());
    let passed: Vec<String> =
        names.chain([String::from("arguments")]).chain((0..e.shared.len()).map(|i| format!("shared{i}"))).collect();
    // Those for tensor cores begin on their own.
    let begin = if target == Target::Cuda && !e.needs_tensor_cores() { "  begin();\n" } else { "" };
    format!("\n{head} {{\n{body}{begin}  {}({here}, {});\n}}\n", e.call, passed.join(", "))
}
