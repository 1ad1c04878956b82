//! Machines without a GPU that can be used: a made-up driver says what is wrong, `auto` computes on the CPU and tells why in one line.

#![cfg(all(feature = "builtin-model", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A driver's interface without a driver; `INIT` is what it says when it starts, `MAJOR` the generation of its only GPU.
const DRIVER: &str = r#"
#include <string.h>
int cuInit(unsigned f) { return INIT; }
int cuDriverGetVersion(int *v) { *v = 12080; return 0; }
#ifndef ANCIENT
int cuGetErrorName(int e, const char **n) { *n = "CUDA_ERROR_MADE_UP"; return 0; }
int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetName(char *n, int l, int d) { strcpy(n, "made up"); return 0; }
int cuDeviceTotalMem_v2(unsigned long *b, int d) { *b = 1ul << 33; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? MAJOR : 0; return 0; }
#define NONE(name) int name(void) { return 999; }
NONE(cuDevicePrimaryCtxRetain) NONE(cuDevicePrimaryCtxRelease_v2) NONE(cuCtxSetCurrent) NONE(cuMemGetInfo_v2) NONE(cuStreamCreate)
NONE(cuStreamDestroy_v2) NONE(cuStreamSynchronize) NONE(cuMemAlloc_v2) NONE(cuMemFree_v2) NONE(cuMemcpyHtoDAsync_v2)
NONE(cuMemcpyDtoHAsync_v2) NONE(cuModuleLoadData) NONE(cuModuleUnload) NONE(cuModuleGetFunction) NONE(cuLaunchKernel)
NONE(cuStreamBeginCapture_v2) NONE(cuStreamEndCapture) NONE(cuGraphInstantiateWithFlags) NONE(cuGraphLaunch) NONE(cuGraphDestroy)
NONE(cuGraphExecDestroy) NONE(cuEventCreate) NONE(cuEventRecord) NONE(cuEventElapsedTime) NONE(cuEventDestroy_v2)
NONE(cuEventSynchronize) NONE(cuMemHostAlloc) NONE(cuMemFreeHost) NONE(cuProfilerStart) NONE(cuProfilerStop)
#endif
"#;

/// Such a driver in `folder`; `None`, loudly, without a C compiler.
fn driver(folder: &Path, name: &str, settings: &[&str]) -> Option<PathBuf> {
    let (source, made) = (folder.join(format!("{name}.c")), folder.join(format!("{name}.so")));
    std::fs::write(&source, DRIVER).unwrap();
    let settings = settings.iter().map(|s| format!("-D{s}"));
    let status =
        Command::new("cc").args(["-w", "-shared", "-fPIC", "-o"]).arg(&made).args(settings).arg(&source).status();
    if !status.is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED: cc does not make a shared library");
        return None;
    }
    Some(made)
}

#[test]
fn every_way_to_be_without_a_gpu_is_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let made = |name: &str, settings: &[&str]| driver(folder.path(), name, settings);
    let whole = ["INIT=0", "COUNT=1", "MAJOR=9"];
    let Some(good) = made("good", &whole) else { return };
    let no_nvrtc = Some(folder.path().join("no-such-nvrtc.so"));
    let cases = [
        (Some(folder.path().join("no-such-driver.so")), None, "there is no NVIDIA driver"),
        (
            made("asleep", &["INIT=100", "COUNT=1", "MAJOR=9"]),
            None,
            "the NVIDIA driver does not start (error 100): is there a GPU?",
        ),
        (made("ancient", &["INIT=0", "ANCIENT"]), None, "the NVIDIA driver is too old: "),
        (made("none", &["INIT=0", "COUNT=0", "MAJOR=9"]), None, "there is no NVIDIA GPU number 0; the driver sees 0"),
        (
            made("old", &["INIT=0", "COUNT=1", "MAJOR=7"]),
            None,
            "this NVIDIA GPU is of compute capability 7.0; 8.0 is needed",
        ),
        (Some(good.clone()), no_nvrtc, "NVRTC is not installed ("),
        (Some(good.clone()), Some(good), "NVRTC is too old: "),
    ];
    for (driver, nvrtc, why) in cases {
        let run = |args: &[&str]| {
            let mut command = command(args);
            command.env("MARLIN_CUDA_DRIVER", driver.as_ref().unwrap());
            if let Some(nvrtc) = &nvrtc {
                command.env("MARLIN_NVRTC", nvrtc);
            }
            finish(command, "")
        };
        let found = run(&["run", "Once", "-n", "2", "--json", "--verbose"]);
        let said: Vec<&str> = found.stderr.lines().filter(|l| l.starts_with("computing on the CPU: ")).collect();
        assert!(said.len() == 1 && said[0].contains(why), "{why}: {}", found.stderr);
        assert_eq!(ids_of(&found.json()["token_ids"]).len(), 2);
        let quiet = run(&["run", "Once", "-n", "2"]);
        assert!(!quiet.stderr.contains("computing on the CPU"), "{}", quiet.stderr);
        let error = run(&["run", "Once", "--device", "cuda"]).error(1);
        assert!(
            error.starts_with("the GPU cannot be used: ") && error.contains(why) && error.lines().count() == 1,
            "{error}"
        );
        let doctor = run(&["doctor", "--quick", "--json"]).json();
        assert!(doctor["gpu"]["unusable"].as_str().unwrap().contains(why), "{doctor}");
    }
}

#[test]
fn on_the_cpu_there_is_nothing_to_warm() {
    let found = marlin(&["warm-cache", "--device", "cpu", "--json"]).json();
    assert_eq!((&found["kernels"], &found["fallbacks"]["total"]), (&serde_json::Value::Null, &0.into()));
    assert!(marlin(&["warm-cache", "--device", "cpu"]).ok().contains("kernels are a part of this program"));
}
