//! Instructions of a weight in the kernels for one row, counted in what clang makes of the text that Metal gets:
//!
//!     cargo test --release -p marlin-gpu --test limits -- --nocapture
//!
//! prints the table that `select::limits` has. The text is compiled as C++ for OpenCL (the address spaces are Metal's) with -O2;
//! counted is the loop with the most multiply-adds, loops within it (that stage inputs) as often as they run.
#![allow(clippy::unwrap_used, clippy::panic)] // a failing test may panic

use marlin_gpu::select::limits::COUNTED;
use marlin_gpu::select::{Chip, Limit, Weight};
use marlin_gpu::source::{Target, module};
use std::path::Path;
use std::process::Command;

/// The intermediate language of `text`; `None`, loudly, without clang.
fn compiled(text: &str) -> Option<String> {
    let named = std::env::var("MARLIN_CLANG").ok();
    let names = named.into_iter().chain(["clang++-19", "clang++-20", "clang++-21"].map(String::from));
    let works = |name: &String| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    let Some(clang) = names.into_iter().find(works) else {
        assert!(std::env::var_os("MARLIN_REQUIRE_TOOLS").is_none(), "no clang++-19");
        eprintln!("SKIPPED: no clang++-19 (Debian package clang-19)");
        return None;
    };
    let headers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metal");
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("limits.metal.cc");
    std::fs::write(&file, text).unwrap();
    let output = Command::new(clang)
        .args([
            "-x",
            "clcpp",
            "-cl-std=CLC++2021",
            "--target=spir64",
            "-cl-no-stdinc",
            "-w",
            "-O2",
            "-mllvm",
            "-inline-threshold=1000000",
            "-S",
            "-emit-llvm",
            "-o",
            "-",
        ])
        .args(["-Xclang", "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_int64", "-include"])
        .arg(headers.join("opencl.h"))
        .arg("-I")
        .arg(&headers)
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Instructions, clocks, and multiply-adds.
#[derive(Clone, Copy, Default)]
struct Cost {
    instructions: f64,
    clocks: f64,
    products: f64,
}

impl Cost {
    fn add(&mut self, other: Cost, times: f64) {
        self.instructions += times * other.instructions;
        self.clocks += times * other.clocks;
        self.products += times * other.products;
    }

    /// Of one line of the intermediate language.
    fn of(line: &str) -> Self {
        let line = line.trim();
        let code = line.split_once(" = ").map_or(line, |(_, code)| code);
        let code = code.strip_prefix("tail ").unwrap_or(code);
        let word = code.split([' ', '(']).next().unwrap_or_default();
        // Values of a vector, each an instruction of its own.
        let lanes = code.split_once('<').filter(|(before, _)| before.len() < word.len() + 20);
        let lanes = lanes.and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok()).unwrap_or(1.0);
        let (count, clocks) = match word {
            "add" | "sub" | "and" | "or" | "xor" | "shl" | "lshr" | "ashr" | "icmp" | "fcmp" | "select" | "fadd"
            | "fmul" | "fsub" | "fneg" | "fpext" | "fptrunc" => (lanes, lanes),
            "mul" | "uitofp" | "sitofp" | "fptoui" | "fptosi" => (lanes, 4.0 * lanes),
            "load" | "store" => (1.0, 1.0),
            // A step by a number that is known is a part of the access.
            "getelementptr" => match code.matches('%').count() > 1 {
                true => (1.0, 1.0),
                false => (0.0, 0.0),
            },
            "call" if code.contains("llvm.lifetime") || code.contains("llvm.assume") => (0.0, 0.0),
            "call" => (lanes, lanes),
            "br" if code.contains("br i1") => (1.0, 1.0),
            _ => (0.0, 0.0),
        };
        let products = if code.contains("@llvm.fmuladd.f32") || code.contains("@llvm.fmuladd.v") { lanes } else { 0.0 };
        Self { instructions: count, clocks, products }
    }
}

/// What a kernel's inner loop takes for each multiply-add; loops within it run `inner` times.
fn count(text: &str, kernel: &str, inner: f64) -> Cost {
    let start = text.find(&format!("@{kernel}(")).unwrap_or_else(|| panic!("{kernel} is not there"));
    let body = &text[start..start + text[start..].find("\n}").unwrap()];
    // Blocks in their order, by name, with what each takes and where it goes.
    let mut blocks: Vec<(String, Cost, Vec<String>)> = vec![("entry".into(), Cost::default(), Vec::new())];
    for line in body.lines().skip(1) {
        let label = line.split(':').next().filter(|_| !line.starts_with([' ', '\t']) && line.contains(':'));
        if let Some(label) = label {
            blocks.push((label.to_owned(), Cost::default(), Vec::new()));
            continue;
        }
        let block = blocks.last_mut().unwrap();
        block.1.add(Cost::of(line), 1.0);
        let targets =
            line.split("label %").skip(1).map(|t| t.split([',', ' ', ']']).next().unwrap_or_default().to_owned());
        block.2.extend(targets);
    }
    let at = |name: &str| blocks.iter().position(|b| b.0 == name);
    // A branch back is a loop: the blocks between.
    let mut loops: Vec<(usize, usize)> = Vec::new();
    for (end, block) in blocks.iter().enumerate() {
        loops.extend(block.2.iter().filter_map(|t| at(t)).filter(|begin| *begin <= end).map(|begin| (begin, end)));
    }
    let products = |&(begin, end): &(usize, usize)| blocks[begin..=end].iter().map(|b| b.1.products).sum::<f64>();
    let most = loops.iter().map(products).fold(0.0, f64::max);
    let main = *loops.iter().filter(|l| products(l) == most).min_by_key(|l| l.1 - l.0).unwrap();
    let mut total = Cost::default();
    for (i, block) in blocks.iter().enumerate().take(main.1 + 1).skip(main.0) {
        let within = loops.iter().any(|l| *l != main && main.0 <= l.0 && l.1 <= main.1 && (l.0..=l.1).contains(&i));
        total.add(block.1, if within { inner } else { 1.0 });
    }
    total
}

#[test]
fn instructions_are_those_that_were_counted() {
    let weights = Weight::examples([4096, 4096]);
    let entries: Vec<_> = weights.iter().map(|w| w.few_rows_entry(1)).collect();
    let Some(text) = compiled(&module(Target::Metal, &entries)) else { return };
    let mut wrong = Vec::new();
    for (weight, entry) in weights.iter().zip(&entries) {
        // Inputs are staged by 128 threads, 1024 at a time (512 where a lane takes 4 weights at once).
        let cost = count(&text, &entry.name, 8.0);
        assert!(cost.products > 0.0, "{} has no multiply-adds", entry.name);
        let (instructions, clocks) = (cost.instructions / cost.products, cost.clocks / cost.products);
        println!("    counted(\"{}\", {instructions:.2}, {clocks:.2}),", weight.describe());
        let known = COUNTED.iter().find(|c| c.weights == weight.describe());
        // Another release of clang may differ by a little.
        let near = |a: f64, b: f64| (a - b).abs() <= 0.1 * b;
        if !known.is_some_and(|k| near(instructions, k.instructions) && near(clocks, k.clocks)) {
            wrong.push(weight.describe());
        }
    }
    for chip in ["M1", "M3 Max", "M4 Max"].map(|name| Chip::named(name).unwrap()) {
        for weight in &weights {
            let Some(l) = Limit::of(chip, weight, 8e9) else { continue };
            println!(
                "| {} | {} | {:.1} | {:.1} | {:.3} | {:.0} | {:.0} |",
                chip.name, l.weights, l.instructions, l.clocks, l.bytes, l.by_instructions, l.by_memory
            );
        }
    }
    assert!(wrong.is_empty(), "the table in select/limits.rs is not that of these kernels: {wrong:?}");
}

#[test]
fn the_smaller_limit_is_memory_or_lanes() {
    let chip = Chip::named("M4 Max").unwrap();
    let bf16 = &Weight::examples([4096, 4096])[0];
    let limit = Limit::of(chip, bf16, 1e9).unwrap();
    // 546 GB/s over two bytes a weight.
    assert_eq!(limit.by_memory, 273.0);
    let lanes = 40.0 * 128.0 * 1578e6;
    assert!((limit.by_instructions - lanes / (limit.clocks * 1e9)).abs() < 1e-6);
}
