//! What the compilers of the real targets say about every kernel, on a machine without a GPU.
//!
//! * Metal: clang with real address spaces, twice (as C++14 with them as attributes, and as C++ for OpenCL, which has no generic
//!   pointers), over stand-ins for Apple's headers in `tests/metal`; and a lint of what both let through.
//! * CUDA: NVRTC, for every architecture we name.
//!
//! A missing tool is told and passed over, unless `MARLIN_REQUIRE_TOOLS` is set, as the checks of a change set it.
#![allow(clippy::unwrap_used, clippy::panic)] // a failing test may panic

use marlin_gpu::kernels::catalogue;
use marlin_gpu::source::{Target, module};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether to go on without `what`.
fn missing(what: &str) {
    assert!(std::env::var_os("MARLIN_REQUIRE_TOOLS").is_none(), "{what}");
    eprintln!("SKIPPED: {what}");
}

fn clang() -> Option<String> {
    let named = std::env::var("MARLIN_CLANG").ok();
    let names = named.into_iter().chain(["clang++-19", "clang++-20", "clang++-21"].map(String::from));
    names.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()))
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Attributes,
    OpenCl,
}

/// What clang says about `text`, if it refuses it.
fn check(clang: &str, mode: Mode, text: &Path) -> Option<String> {
    let headers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metal");
    let mut command = Command::new(clang);
    match mode {
        Mode::Attributes => command
            .args(["-x", "c++", "-std=c++14", "-ffreestanding", "-nostdinc++", "-fno-exceptions", "-fno-rtti"])
            .arg("-include")
            .arg(headers.join("attributes.h")),
        Mode::OpenCl => command
            .args(["-x", "clcpp", "-cl-std=CLC++2021", "--target=spir64", "-cl-no-stdinc"])
            .args(["-Xclang", "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_int64"])
            .arg("-include")
            .arg(headers.join("opencl.h")),
    };
    command.args([
        "-fsyntax-only",
        "-ferror-limit=20",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-attributes",
        "-Wno-ignored-attributes",
    ]);
    command.args([
        "-Wno-unused-parameter",
        "-Wno-unused-function",
        "-Wno-undefined-inline",
        "-Wno-undefined-internal",
        "-Wno-unused-const-variable",
    ]);
    command.args(["-Wno-sign-compare", "-Wno-pass-failed", "-Wno-unused-variable", "-Wno-unused-local-typedef"]);
    let output = command.arg("-I").arg(&headers).arg(text).output().unwrap();
    (!output.status.success())
        .then(|| String::from_utf8_lossy(&output.stderr).lines().take(60).collect::<Vec<_>>().join("\n"))
}

/// What MSL asks for and clang does not: an address space on every pointer and reference, and none of the things that the other
/// checks let through. Gives the lines that lack it.
fn lint(text: &str) -> Vec<String> {
    let spaces = ["device", "threadgroup", "thread", "constant"];
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let spaced = code.replace("DEVICE", "device").replace("THREADGROUP", "threadgroup");
        let code = spaced.replace("THREAD", "thread").replace("CONSTANT", "constant");
        // A type, a star or an ampersand, a name, and then what ends a declarator.
        let bytes = code.as_bytes();
        for (i, _) in code.match_indices(['*', '&']) {
            let before = code[..i].trim_end();
            let after = code[i + 1..].trim_start();
            let kind = before.rsplit(|c: char| !c.is_alphanumeric() && c != '_' && c != '>').next().unwrap_or_default();
            let is_type = [
                "float", "uint", "int", "uchar", "ushort", "half", "uint4", "uint2", "float4", "T", "W", "Raw",
                "MatTile",
            ]
            .contains(&kind)
                || kind.ends_with("Args");
            let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let next = after[name.len()..].trim_start().chars().next().unwrap_or(';');
            let declares = is_type
                && !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && ",)=;[".contains(next);
            let casts = is_type && after.starts_with(')');
            if !(declares || casts) || (i > 0 && bytes[i - 1] == b'&') {
                continue;
            }
            let start = before.rfind(['(', ',', ';', '{', '<']).map_or(0, |p| p + 1);
            if !before[start..].split_whitespace().any(|w| spaces.contains(&w)) {
                found.push(format!("{}: no address space: {}", n + 1, line.trim()));
            }
        }
        if code.contains("[&]") || code.contains("[=]") || code.contains("[](") {
            found.push(format!("{}: a lambda: {}", n + 1, line.trim()));
        }
        // A function that calls itself: MSL has no recursion.
        if let Some(rest) = code.split("FN ").nth(1) {
            let name =
                rest.split('(').next().unwrap_or_default().split_whitespace().last().unwrap_or_default().to_owned();
            let body = rest.split_once('{').map_or("", |(_, b)| b);
            let calls = body
                .match_indices(&format!("{name}("))
                .any(|(i, _)| !body[..i].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
            if !name.is_empty() && calls {
                found.push(format!("{}: recursion: {}", n + 1, line.trim()));
            }
        }
        for (i, _) in code.match_indices("[[buffer(") {
            let number = code[i + 9..].split(')').next().unwrap_or_default();
            if code.matches(&format!("[[buffer({number})]]")).count() > 1 {
                found.push(format!("{}: buffer {number} twice", n + 1));
            }
        }
        if code.contains("[[buffer(") && code.contains("bool ") {
            found.push(format!("{}: a bool in a buffer", n + 1));
        }
    }
    found
}

fn written(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn metal_takes_every_kernel() {
    let text = module(Target::Metal, &catalogue());
    assert_eq!(lint(&text), Vec::<String>::new());
    let Some(clang) = clang() else { return missing("no clang++-19 for the Metal checks (Debian package clang-19)") };
    let path = written("every.metal.cc", &text);
    for mode in [Mode::Attributes, Mode::OpenCl] {
        if let Some(said) = check(&clang, mode, &path) {
            panic!("{mode:?}: {said}");
        }
    }
}

/// Each file in `tests/refused` is a body that Metal would refuse, and a check must.
#[test]
fn programs_that_metal_refuses_are_refused() {
    let Some(clang) = clang() else { return missing("no clang++-19 for the Metal checks (Debian package clang-19)") };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refused");
    let prelude = module(Target::Metal, &[]);
    // The prelude alone passes, so what is refused is refused for what the file adds.
    let path = written("prelude.metal.cc", &prelude);
    assert_eq!(lint(&prelude), Vec::<String>::new());
    for mode in [Mode::Attributes, Mode::OpenCl] {
        assert_eq!(check(&clang, mode, &path), None);
    }
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let body = std::fs::read_to_string(&file).unwrap();
        let text = format!("{prelude}\n{body}");
        let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
        let path = written(&format!("refused_{stem}.cc"), &text);
        let by_clang = [Mode::Attributes, Mode::OpenCl].into_iter().any(|mode| check(&clang, mode, &path).is_some());
        assert!(by_clang || !lint(&body).is_empty(), "{stem} is let through");
        count += 1;
    }
    assert!(count >= 20, "{count} programs");
}

#[test]
#[cfg(not(target_os = "macos"))]
fn cuda_takes_every_kernel() {
    use marlin_gpu::device::nvrtc;
    use marlin_gpu::kernels::tensor_catalogue;
    if let Err(why) = nvrtc::version() {
        return missing(&why.to_string());
    }
    let entries = [catalogue(), tensor_catalogue()].concat();
    let text = module(Target::Cuda, &entries);
    println!("{} kernels, {} bytes of source, NVRTC {}", entries.len(), text.len(), nvrtc::version().unwrap());
    std::thread::scope(|scope| {
        for architecture in ["sm_80", "sm_89", "sm_90a", "sm_120"] {
            let text = &text;
            scope.spawn(move || {
                let code = nvrtc::compile(text, architecture, "every kernel")
                    .unwrap_or_else(|e| panic!("{architecture}: {e}"));
                // An ELF file for the machine.
                assert_eq!(&code[..4], b"\x7fELF", "{architecture}");
            });
        }
    });
}
