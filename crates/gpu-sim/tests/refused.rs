//! Kernels that a GPU would run wrongly, each of which must be refused, and their right twins, which must run.
#![allow(clippy::unwrap_used, clippy::panic)] // a failing test may panic

use marlin_gpu::device::{Binding, Device, Launch};
use marlin_gpu::source::{self, Access, Entry, Parameter, Target};
use marlin_gpu_sim::{Order, Simulated};
use std::collections::BTreeMap;

/// Runs `body` as a kernel on two groups of 64 threads: 256 floats to read, 256 to write, 64 words of threadgroup memory, and
/// arguments { count = 256 }. Gives what was written, or what was wrong.
fn run(body: &str, order: Order) -> Result<Vec<f32>, String> {
    let parameter = |name, access| Parameter { name, element: "float", access };
    let declaration = (1, "struct TestArgs { uint count; };\n".to_owned());
    let entry = Entry {
        name: "test".into(),
        file: if body.contains("last_to_come") { "stream.h" } else { "" },
        call: "body".into(),
        threads: 64,
        shared: vec![("float", 64)],
        parameters: vec![parameter("x", Access::Read), parameter("y", Access::Write)],
        arguments: "TestArgs",
        declarations: BTreeMap::from([("TestArgs", declaration)]),
    };
    let whole = format!(
        "FN void body(Where at, DEVICE const float *x, DEVICE float *y, CONSTANT TestArgs &a, THREADGROUP float *s) {{\n{body}\n}}\n"
    );
    let text = source::module_of(Target::Host, &whole, std::slice::from_ref(&entry));
    let device = Simulated::new(order);
    let function = device.compile(&text, &[entry]).map_err(|e| e.to_string())?.functions[0];
    let [x, y] = [Access::Read, Access::Write].map(|access| {
        let handle = device.allocate(1024).unwrap();
        Binding { handle, offset: 0, bytes: 1024, access }
    });
    let values: Vec<u8> = (0..256).flat_map(|i| (i as f32).to_le_bytes()).collect();
    device.upload(x.handle, 0, &values).unwrap();
    device.upload(y.handle, 1020, &[0; 4]).unwrap(); // a counter, perhaps
    let launch =
        Launch { function, threads: 64, groups: [2, 1, 1], bindings: &[x, y], arguments: &256u32.to_le_bytes() };
    device.launch(&launch).map_err(|e| e.to_string())?;
    let mut out = vec![0; 1024];
    device.download(y.handle, 0, &mut out).unwrap();
    Ok(out.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// `wrong` is refused in every order for a reason that says `why`; `right` gives the same in every order.
fn refused(why: &str, wrong: &str, right: &str) {
    if let Some(absent) = Simulated::absent() {
        eprintln!("SKIPPED: {absent}");
        return;
    }
    for order in Order::ALL {
        let found = run(wrong, order).unwrap_err();
        assert!(found.contains(why), "{order:?}: {found}");
    }
    let bits = |order| {
        run(right, order).unwrap_or_else(|e| panic!("{order:?}: {e}")).into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let expected = bits(Order::Forward);
    assert!(expected.iter().any(|b| !f32::from_bits(*b).is_nan()), "nothing was written");
    for order in Order::ALL {
        assert_eq!(bits(order), expected, "{order:?}");
    }
}

#[test]
fn a_missing_barrier() {
    let with = |barrier: &str| {
        format!("s[at.thread_] = x[at.thread_]; {barrier} y[at.group.x * 64 + at.thread_] = s[63 - at.thread_];")
    };
    // In some orders the value has been written all the same, in others not yet.
    for order in Order::ALL {
        let found = run(&with(""), order).unwrap_err();
        assert!(found.contains("race within group") || found.contains("nobody has written"), "{found}");
    }
    refused("", &with(""), &with("group_barrier();"));
}

#[test]
fn a_missing_barrier_before_memory_is_used_again() {
    let with = |barrier: &str| {
        format!(
            "float sum = 0.0f;\nfor (uint k = 0; k < 2; k++) {{ {barrier} s[at.thread_] = x[k]; group_barrier(); sum += s[63 - at.thread_]; }}\n\
             y[at.group.x * 64 + at.thread_] = sum;"
        )
    };
    refused("race within group", &with(""), &with("group_barrier();"));
}

#[test]
fn a_barrier_of_threadgroup_memory_does_not_order_device_memory() {
    let with = |barrier: &str| {
        format!(
            "y[at.group.x * 64 + at.thread_] = 1.0f; {barrier}(); float v = y[at.group.x * 64 + 63 - at.thread_]; device_barrier();\n\
             y[128 + at.group.x * 64 + at.thread_] = v;"
        )
    };
    refused("race within group", &with("group_barrier"), &with("device_barrier"));
}

#[test]
fn a_fence_orders_a_simdgroup_only() {
    let with = |other: &str| {
        format!("s[at.thread_] = 1.0f; simd_fence(); y[at.group.x * 64 + at.thread_] = s[at.thread_ ^ {other}];")
    };
    for order in Order::ALL {
        let found = run(&with("32"), order).unwrap_err();
        assert!(found.contains("race within group") || found.contains("nobody has written"), "{found}");
    }
    refused("", &with("32"), &with("1"));
}

#[test]
fn a_race_between_threadgroups() {
    refused(
        "race between threadgroups",
        "y[at.thread_] = float(at.group.x);",
        "y[at.group.x * 64 + at.thread_] = float(at.group.x);",
    );
    // One group reads what another writes.
    refused(
        "race between threadgroups",
        "if (at.group.x == 0) { y[at.thread_] = 1.0f; } else { y[64 + at.thread_] = y[at.thread_]; }",
        "y[at.group.x * 64 + at.thread_] = x[at.thread_];",
    );
}

/// A simdgroup that comes to a counter shows what it wrote, and its group's others only what they wrote before a barrier.
#[test]
fn what_is_not_shown_at_a_counter() {
    let with = |barrier: &str| {
        format!(
            "const uint i = at.group.x * 64 + at.thread_; y[i] = x[i]; {barrier} \
             if (at.simd == 0 && last_to_come((DEVICE uint *)(y + 255), 2, at.lane)) \
               y[128 + at.lane] = y[63 - at.lane] + y[127 - at.lane];"
        )
    };
    refused("race", &with(""), &with("device_barrier();"));
}

#[test]
fn a_branch_around_a_simdgroup_operation() {
    refused(
        "divergence",
        "float v = 1.0f; if (at.lane < 16) { v = simd_total(v); } y[at.group.x * 64 + at.thread_] = v;",
        "float v = simd_total(1.0f); if (at.lane < 16) { v += 1.0f; } y[at.group.x * 64 + at.thread_] = v;",
    );
    refused(
        "divergence",
        "float v = 1.0f;\nif (at.lane < 16) { v = lane_xor(v, 1); }\nelse { v = lane_xor(v, 2); }\ny[at.group.x * 64 + at.thread_] = v;",
        "float v = lane_xor(x[at.thread_], at.lane < 16 ? 1 : 1); y[at.group.x * 64 + at.thread_] = v;",
    );
}

/// Lanes that leave a loop at different times, while others wait in it.
#[test]
fn a_loop_that_is_not_uniform_around_a_simdgroup_operation() {
    let with = |begin: &str| {
        format!(
            "float sum = 0.0f;\nfor (uint first = {begin}; first < 66; first += 32) {{\n\
             sum += simd_total(first + at.lane < 66 ? 1.0f : 0.0f);\n}}\ny[at.group.x * 64 + at.thread_] = sum;"
        )
    };
    refused("divergence", &with("at.lane"), &with("0"));
}

/// The same around a matrix product.
#[test]
fn a_loop_that_is_not_uniform_around_a_matrix_product() {
    let with = |end: &str| {
        format!(
            "s[at.thread_] = 1.0f; group_barrier(); MatTile t; t.clear();\nfor (uint k = 0; k < {end}; k++) {{\n\
             t.multiply(s, s, 0, at.lane);\n}}\ny[at.group.x * 64 + at.thread_] = t.c[0];"
        )
    };
    refused("divergence", &with("1 + at.lane / 16"), &with("2"));
}

#[test]
fn a_barrier_that_not_all_reach() {
    refused(
        "a barrier",
        "if (at.thread_ < 32) { group_barrier(); } y[at.group.x * 64 + at.thread_] = 1.0f;",
        "group_barrier(); y[at.group.x * 64 + at.thread_] = 1.0f;",
    );
}

#[test]
fn accesses_out_of_bounds() {
    let write = "y[at.group.x * 64 + at.thread_] =";
    refused("out of bounds", &format!("{write} x[at.thread_ + 200];"), &format!("{write} x[at.thread_ + 192];"));
    refused(
        "out of bounds",
        "y[at.group.x * 64 + at.thread_ + 129] = 1.0f;",
        "y[at.group.x * 64 + at.thread_ + 128] = 1.0f;",
    );
    refused("out of bounds", &format!("{write} x[int(at.thread_) - 1];"), &format!("{write} x[at.thread_];"));
    refused(
        "out of bounds",
        &format!("s[at.thread_] = 0.0f; {write} s[at.thread_ + 64];"),
        &format!("s[at.thread_] = 0.0f; {write} s[at.thread_];"),
    );
}

#[test]
fn writes_to_what_is_only_read() {
    refused(
        "was given to read",
        "((float *)x)[at.thread_] = 1.0f; y[at.thread_] = 1.0f;",
        "y[at.group.x * 64 + at.thread_] = x[0];",
    );
}

#[test]
fn threadgroup_memory_that_nobody_wrote() {
    let write = "y[at.group.x * 64 + at.thread_] =";
    refused(
        "nobody has written",
        &format!("{write} s[at.thread_];"),
        &format!("s[at.thread_] = 2.0f; {write} s[at.thread_];"),
    );
}

#[test]
fn operations_of_a_simdgroup_give_what_they_say() {
    if let Some(absent) = Simulated::absent() {
        eprintln!("SKIPPED: {absent}");
        return;
    }
    let of = |expression: &str| {
        run(&format!("y[at.group.x * 64 + at.thread_] = {expression};"), Order::Shuffled(7)).unwrap()
    };
    let xor = of("lane_xor(float(at.thread_), 5)");
    let total = of("simd_total(float(at.thread_))");
    let value = of("lane_value(float(at.thread_), 3)");
    for i in 0..64usize {
        assert_eq!(xor[i], (i ^ 5) as f32);
        assert_eq!(total[i], (0..32).map(|l| l + i / 32 * 32).sum::<usize>() as f32);
        assert_eq!(value[i], (i / 32 * 32 + 3) as f32);
    }
}
