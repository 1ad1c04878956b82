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
    let objects = build.compile_intermediates();
    println!("cargo::rustc-env=SIM_COMPILER={}", build.get_compiler().path().display());
    println!("cargo::rustc-env=SIM_RUNTIME={}", objects[0].display());
}
