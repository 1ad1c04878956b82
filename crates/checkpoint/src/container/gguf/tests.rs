#![allow(clippy::unwrap_used, clippy::panic)]

use super::writer::{Writer, text};
use super::*;
use crate::DType;

fn refused(bytes: Vec<u8>) -> String {
    match GgufFile::from_bytes("x.gguf", bytes.into()) {
        Ok(_) => panic!("accepted"),
        Err(e) => e.to_string(),
    }
}

fn small() -> Writer {
    Writer::new("llama")
        .u32("llama.block_count", 2)
        .texts("list", &["a", "bc", ""])
        .floats("f", &[2, 3], (0..6).map(|i| i as f32))
        .tensor("q", &[2, 64], 8, &[1; 4 * 34])
}

/// A file that Python's `gguf` wrote: every type of value.
#[test]
fn a_file_by_python_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf/blocks.gguf");
    let GgufFile { metadata, store } = GgufFile::open(&path).unwrap();
    assert_eq!(metadata.text("text").unwrap(), Some("Zwölf Boxkämpfer"));
    let array = |key: &str| metadata.array(key).unwrap().unwrap();
    assert_eq!(array("texts").texts().unwrap().collect::<Vec<_>>(), ["a", "", "ä"]);
    assert_eq!(array("numbers").integers().unwrap(), [1, -2, 3]);
    assert_eq!(array("floats").numbers().unwrap(), [0.5, -1.5]);
    assert!(array("floats").integers().is_none() && array("numbers").texts().is_none());
    assert_eq!(array("nested").len(), 2);
    assert!(array("nested").scalars().is_none());
    assert_eq!(metadata.usize("large").unwrap(), Some(1 << 60));
    assert_eq!(metadata.number("small").unwrap(), Some(-5.0));
    assert_eq!(metadata.number("pi").unwrap(), Some(std::f64::consts::PI));
    assert_eq!(metadata.bool("yes").unwrap(), Some(true));
    assert_eq!(metadata.usize("absent").unwrap(), None);
    let error = metadata.usize("small").unwrap_err().to_string();
    assert!(error.ends_with("blocks.gguf: key \"small\": expected an integer from 0, found -5"), "{error}");
    let error = metadata.text("numbers").unwrap_err().to_string();
    assert!(error.ends_with("expected a string, found an array of 3 i32"), "{error}");
    let f32s = store.tensor("F32").unwrap();
    assert_eq!((f32s.info.dtype, f32s.info.shape.as_slice()), (DType::F32, &[2, 3, 8][..]));
    let (f16s, bf16s) = (store.tensor("F16").unwrap(), store.tensor("BF16").unwrap());
    for ((a, b), c) in f32s.to_f32().unwrap().iter().zip(f16s.to_f32().unwrap()).zip(bf16s.to_f32().unwrap()) {
        assert!((a - b).abs() <= a.abs() / 2048.0 + 1e-7 && (a - c).abs() <= a.abs() / 256.0 + 1e-7, "{a} {b} {c}");
    }
    let q = store.tensor("Q4_K").unwrap();
    assert_eq!((q.info.dtype, q.info.shape.as_slice(), q.data.len()), (DType::Q4K, &[5, 512][..], 5 * 288));
    assert!(q.data.is_mapped());
    assert_eq!(&*q.rows(1..3).unwrap().data, &q.data[288..3 * 288]);
}

#[test]
fn stacked_blocks_are_indexed() {
    let data: Vec<u8> = (0..3 * 2 * 68).map(|i| i as u8).collect();
    let file = Writer::new("x").tensor("s", &[3, 2, 64], 8, &data).tensor("v", &[64], 8, &[0; 68]).file();
    let one = file.store.tensor("s").unwrap().index(1).unwrap();
    assert_eq!((one.info.shape.as_slice(), &*one.data), (&[2, 64][..], &data[136..272]));
    let vector = file.store.tensor("v").unwrap();
    assert_eq!(vector.rows(32..64).unwrap().data.len(), 34);
    let error = vector.index(3).unwrap_err().to_string();
    assert!(error.contains("no whole blocks of 32"), "{error}");
}

#[test]
fn versions_and_other_files() {
    let mut two = small();
    two.version = 2;
    assert_eq!(two.file().store.tensors().len(), 2);
    for (version, expected) in [
        (1, "x.gguf: GGUF version 1; expected 2 or 3: convert the model again with a newer program"),
        (4, "x.gguf: GGUF version 4; expected 2 or 3: update metal-marlin"),
        (3u32.swap_bytes(), "x.gguf: the numbers are byte-swapped (a big-endian GGUF file)"),
    ] {
        let mut file = small();
        file.version = version;
        assert!(refused(file.bytes()).starts_with(expected), "{}", refused(file.bytes()));
    }
    let error = refused(b"\x08\0\0\0\0\0\0\0{}".to_vec());
    assert!(error.contains("expected the file to begin with \"GGUF\", found \"\\x08\\x00\\x00\\x00\""), "{error}");
    assert!(refused(vec![]).contains("the header takes 4 bytes at byte 0, but only 0 are left; the file is truncated"));
}

#[test]
fn each_malformed_file_has_its_error() {
    let large = 1u64 << 60;
    let long = |kind: u32| [&kind.to_le_bytes()[..], &large.to_le_bytes()].concat();
    let mut nested = long(9);
    nested[4..].copy_from_slice(&1u64.to_le_bytes());
    let nested = [nested.clone(), nested.clone(), nested.clone(), nested.clone(), nested].concat();
    let one = || Writer::new("x");
    let mut twice = one().listed("t", &[8], 0, 0).tensor("t", &[8], 0, &[0; 32]);
    twice.alignment = 32;
    let cases = [
        (small().header(large, 3), "a list of 1152921504606846976 tensors takes"),
        (small().header(2, large), "a list of 1152921504606846976 keys and values takes"),
        (one().raw("k", 8, &large.to_le_bytes()).bytes(), "the text of key \"k\" takes 1152921504606846976 bytes"),
        (one().raw("k", 9, &long(0)).bytes(), "an array of 1152921504606846976 in key \"k\" takes"),
        (one().raw("k", 9, &long(8)).bytes(), "an array of 1152921504606846976 in key \"k\" takes"),
        (one().raw("k", 9, &long(9)).bytes(), "an array of 1152921504606846976 in key \"k\" takes"),
        (one().raw("k", 9, &nested).bytes(), "key \"k\": arrays are nested more than 4 deep"),
        (one().raw("k", 13, &[0; 8]).bytes(), "key \"k\": value type 13 is not known (0 to 12 are)"),
        (one().raw("k", 9, &long(77)).bytes(), "key \"k\": value type 77 is not known"),
        (one().raw("k", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]).bytes(), "the text of key \"k\" is not UTF-8"),
        (one().u32("k", 1).u32("k", 1).bytes(), "key \"k\" is there twice"),
        (one().u32("general.alignment", 0).bytes(), "\"general.alignment\": expected a power of two, found 0"),
        (one().u32("general.alignment", 24).bytes(), "expected a power of two, found 24"),
        (one().text("general.alignment", "32").bytes(), "expected a power of two, found \"32\""),
        (twice.bytes(), "tensor \"t\" is listed twice"),
        (one().listed("t", &[1; 5], 0, 0).bytes(), "tensor \"t\": expected at most 4 dimensions, found 5"),
        (one().listed("t", &[large, large], 0, 0).bytes(), "tensor \"t\": dimensions [1152921504606846976, 11529"),
        (one().listed("t", &[0, large, large], 0, 0).bytes(), "overflow"),
        (one().listed("t", &[large], 12, 0).bytes(), "overflow"),
        (one().listed("t", &[32], 4, 0).bytes(), "element type 4 (Q4_2, which GGML has removed) cannot be read"),
        (
            one().listed("t", &[256], 16, 0).bytes(),
            "tensor \"t\": element type 16 (IQ2_XXS) cannot be read; use a file",
        ),
        (one().listed("t", &[256], 40, 0).bytes(), "element type 40 (NVFP4) cannot be read"),
        (one().listed("t", &[256], 999, 0).bytes(), "element type 999 (unknown) cannot be read"),
        (one().listed("t", &[40], 8, 0).bytes(), "rows of 40 elements are no whole blocks of 32 (Q8_0)"),
        (one().listed("t", &[32, 256], 12, 0).bytes(), "rows of 32 elements are no whole blocks of 256 (Q4_K)"),
        (one().listed("t", &[8], 0, 4).bytes(), "offset 4 is no multiple of the alignment 32"),
        (one().listed("t", &[8], 0, large).bytes(), "tensor \"t\" takes bytes 1152921504606846976 to"),
        (
            one().listed("t", &[8], 0, 32).tensor("u", &[8], 0, &[0; 32]).bytes(),
            "takes bytes 32 to 64 of the data, but only 32",
        ),
        (
            one().listed("t", &[16], 0, 0).tensor("u", &[8], 0, &[0; 32]).tensor("v", &[8], 0, &[0; 32]).bytes(),
            "tensors \"t\" and \"u\" overlap at byte 0 of the data",
        ),
        (one().u32("split.count", 3).bytes(), "this is one of 3 parts; expected a whole file"),
    ];
    for (bytes, expected) in cases {
        let error = refused(bytes);
        assert!(error.starts_with("x.gguf: ") && error.contains(expected), "expected {expected:?}, found {error:?}");
    }
    // A file that claims its tensors begin at the end of the address space.
    let far = one().raw("general.alignment", 10, &(1u64 << 63).to_le_bytes()).listed("t", &[0], 0, 0);
    assert!(far.file().store.tensor("t").unwrap().data.is_empty());
    let far = one().raw("general.alignment", 10, &(1u64 << 63).to_le_bytes()).listed("t", &[1], 0, 0);
    assert!(refused(far.bytes()).contains("but only 0 are there"));
}

/// Every prefix of a good file is refused, and no flipped bit brings anything down.
#[test]
fn truncated_and_damaged_files() {
    let good = small().bytes();
    assert!(GgufFile::from_bytes("x", good.clone().into()).is_ok());
    for n in 0..good.len() {
        refused(good[..n].to_vec());
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let Ok(file) = GgufFile::from_bytes("damaged", bad.into()) else { continue };
        for info in file.store.tensors() {
            assert_eq!(file.store.tensor(&info.name).unwrap().data.len(), info.bytes());
        }
    }
}

#[test]
fn alignment_is_the_files_own() {
    let mut wide = Writer::new("x").u32("general.alignment", 256);
    wide.alignment = 256;
    let file = wide.floats("a", &[1], [1.0]).floats("b", &[2], [2.0, 3.0]).file();
    assert_eq!(file.store.tensor("b").unwrap().to_f32().unwrap(), [2.0, 3.0]);
    assert_eq!(text("ab").len(), 10);
}

struct Split(tempfile::TempDir);

impl Split {
    /// Three parts with one tensor each, changed by `change`.
    fn new(change: impl Fn(usize, Writer) -> Writer) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..3 {
            let part = if i == 0 { Writer::new("llama") } else { Writer::new("unused") };
            let part = part.raw("split.no", 2, &(i as u16).to_le_bytes()).raw("split.count", 2, &3u16.to_le_bytes());
            let part = change(i, part.raw("split.tensors.count", 5, &3i32.to_le_bytes()));
            let part = part.floats(&format!("t{i}"), &[1], [i as f32]);
            std::fs::write(folder.path().join(format!("m-0000{}-of-00003.gguf", i + 1)), part.bytes()).unwrap();
        }
        Self(folder)
    }

    fn path(&self, number: usize) -> PathBuf {
        self.0.path().join(format!("m-0000{number}-of-00003.gguf"))
    }

    fn error(&self, number: usize) -> String {
        GgufFile::open(&self.path(number)).err().unwrap().to_string()
    }
}

#[test]
fn any_part_opens_the_whole() {
    let split = Split::new(|_, part| part);
    for number in 1..=3 {
        let file = GgufFile::open(&split.path(number)).unwrap();
        assert_eq!(file.metadata.text("general.architecture").unwrap(), Some("llama"));
        for i in 0..3 {
            assert_eq!(file.store.tensor(&format!("t{i}")).unwrap().to_f32().unwrap(), [i as f32]);
        }
    }
    assert_eq!(models(split.0.path()).unwrap(), [split.path(1)]);
    std::fs::write(split.0.path().join("mmproj-m.gguf"), b"").unwrap();
    assert_eq!(models(split.0.path()).unwrap().len(), 1);
    let renamed = split.0.path().join("other.gguf");
    std::fs::copy(split.path(2), &renamed).unwrap();
    let error = GgufFile::open(&renamed).err().unwrap().to_string();
    assert!(error.contains("this is one of 3 parts, which must be called name-00001-of-00003.gguf"), "{error}");
    assert_eq!(models(split.0.path()).unwrap().len(), 2);
    std::fs::remove_file(split.path(2)).unwrap();
    assert!(split.error(3).contains("part \"m-00002-of-00003.gguf\" is not there; download it too"));
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let split = Split::new(|_, part| part);
    std::fs::copy(split.path(1), split.path(2)).unwrap();
    let error = split.error(1);
    assert!(error.contains("m-00002-of-00003.gguf: expected part 1 (from 0) of 3, found part 0 of 3"), "{error}");
    let split = Split::new(|_, part| part.floats("same", &[1], [0.0]));
    assert!(split.error(1).contains("tensor \"same\" is also in"));
    let split = Split::new(|i, part| if i == 2 { part.floats("more", &[1], [0.0]) } else { part });
    assert!(split.error(1).contains("\"split.tensors.count\": expected 3 tensors in 3 parts, found 4"));
    let split = Split::new(|_, part| part);
    let four = split.0.path().join("m-00001-of-00004.gguf");
    std::fs::rename(split.path(1), &four).unwrap();
    let error = GgufFile::open(&four).err().unwrap().to_string();
    assert!(error.contains("key \"split.count\" says 3 parts, the name 1 of 4"), "{error}");
    let huge = Writer::new("x").u32("split.count", u32::MAX).bytes();
    assert!(refused(huge).contains("key \"split.count\": expected at most 99999, found 4294967295"));
}
