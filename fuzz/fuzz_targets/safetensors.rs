//! Any bytes as a safetensors file: refused, or every tensor lies within the file and no two share a byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use marlin_checkpoint::container::Header;
use marlin_checkpoint::{Store, TensorSource};

fuzz_target!(|input: &[u8]| {
    check(input);
    // The same bytes as a header of the right length, with so much data as its first byte says.
    if let Some((&amount, header)) = input.split_first() {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header);
        file.resize(file.len() + usize::from(amount), 0);
        check(&file);
    }
});

fn check(file: &[u8]) {
    let Ok(header) = Header::parse(file) else { return };
    let total: usize = header.tensors.iter().map(|(_, range)| range.len()).sum();
    assert!(header.tensors.windows(2).all(|w| w[0].1.end <= w[1].1.start));
    let store = Store::from_bytes("input", file.to_vec().into()).expect("parsed before");
    assert_eq!(store.tensors().iter().map(|t| t.bytes()).sum::<usize>(), total);
    for info in store.tensors() {
        let tensor = store.tensor(&info.name).expect("listed");
        assert_eq!(tensor.data.len(), info.bytes());
        let _ = tensor.to_f32();
        for i in [0, 1, usize::MAX] {
            let _ = tensor.index(i);
        }
    }
}
