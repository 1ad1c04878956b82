//! Compiles the simulator's runtime, and tells the library which C++ compiler to call for kernels.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=runtime/runtime.cc");
    // The simulator is for machines that run tests; elsewhere the crate is only type-checked.
    let linux = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if !linux {
        println!("cargo::rustc-env=SIM_COMPILER=");
        println!("cargo::rustc-env=SIM_RUNTIME=");
        return;
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).pic(true).warnings(true).file("runtime/runtime.cc");
    // Without a compiler the crate still builds, and what would use the simulator says that it cannot.
    let (compiler, runtime) = match (build.try_get_compiler(), build.try_compile_intermediates()) {
        (Ok(compiler), Ok(objects)) if !objects.is_empty() => {
            (compiler.path().display().to_string(), objects[0].display().to_string())
        }
        _ => {
            println!("cargo::warning=no C++ compiler works: tests on the simulated GPU will be skipped");
            (String::new(), String::new())
        }
    };
    println!("cargo::rustc-env=SIM_COMPILER={compiler}");
    println!("cargo::rustc-env=SIM_RUNTIME={runtime}");
}
