use super::*;
use crate::DType;

/// A file with this header text and data.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn refused(bytes: &[u8]) -> Malformed {
    Header::parse(bytes).unwrap_err()
}

fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn header(entries: &[String]) -> String {
    format!("{{{}}}", entries.join(","))
}

#[test]
fn a_good_file_is_read() {
    let text = format!(
        r#"{{"__metadata__":{{"format":"pt"}},{},{},{}}}   "#,
        entry("b", "F32", "[1,2]", 6, 14),
        entry("a", "BF16", "[3]", 0, 6),
        entry("empty", "F32", "[0,5]", 14, 14)
    );
    let data: Vec<u8> = (0..14).collect();
    let store = Store::from_bytes("x", file(&text, &data).into()).unwrap();
    assert_eq!(store.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a", "b", "empty"]);
    let b = store.tensor("b").unwrap();
    assert_eq!((b.info.dtype, b.info.shape.as_slice(), &*b.data), (DType::F32, [1, 2].as_slice(), &data[6..14]));
    assert_eq!(store.files()[0].metadata["format"], "pt");
    assert!(store.tensor("empty").unwrap().data.is_empty());
    let Error::MissingTensor { name, .. } = store.tensor("c").unwrap_err() else { panic!("wrong error") };
    assert_eq!(name, "c");
}

#[test]
fn each_malformed_file_has_its_error() {
    let good = entry("a", "F32", "[2]", 0, 8);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![1, 2, 3], "the file has 3 bytes, too few"),
        (vec![], "the file has 0 bytes, too few"),
        (u64::MAX.to_le_bytes().to_vec(), "the header claims 18446744073709551615 bytes, more than the limit"),
        ([&100u64.to_le_bytes()[..], b"{}"].concat(), "the header claims 100 bytes, but only 2 follow"),
        (file("", &[]), "does not begin with '{'"),
        (file("[]", &[]), "does not begin with '{'"),
        ([&4u64.to_le_bytes()[..], &[b'{', 0xff, b'}', b' ']].concat(), "not UTF-8 (byte 1 of it is wrong)"),
        (file("{\"a\":", &[]), "cannot be read: EOF while parsing"),
        (file("{\"a\":{}}", &[]), "cannot be read: missing field `dtype`"),
        (file("{\"a\":[1]}", &[]), "cannot be read: "),
        (file(&header(&[entry("a", "F32", "[-1]", 0, 8)]), &[0; 8]), "invalid value: integer `-1`, expected u64"),
        (file(&header(&[entry("a", "F32", "[2.0]", 0, 8)]), &[0; 8]), "expected u64"),
        (file(&format!("{{{}}} x", good), &[0; 8]), "trailing characters"),
        (file(&header(&[good.clone(), good.clone()]), &[0; 8]), "tensor \"a\" is listed twice"),
        (file(&header(&[entry("a", "F99", "[2]", 0, 8)]), &[0; 8]), "element type \"F99\" is not known"),
        (
            file(&header(&[entry("a", "F32", "[3]", 0, 8)]), &[0; 8]),
            "F32 [3] takes 12 bytes, but its data offsets span 8",
        ),
        (file(&header(&[entry("a", "F32", "[2]", 8, 0)]), &[0; 8]), "data offsets [8, 0] run backwards"),
        (
            file(&header(&[entry("a", "F32", "[4294967296,4294967296]", 0, 0)]), &[]),
            "shape [4294967296, 4294967296] overflows",
        ),
        (
            file(&header(&[entry("a", "U8", "[0,18446744073709551615,2]", 0, 0)]), &[]),
            "shape [0, 18446744073709551615, 2] overflows",
        ),
        (file(&header(std::slice::from_ref(&good)), &[0; 7]), "ends at byte 8 of the data, but only 7 bytes are there"),
        (
            file(&header(&[good.clone(), entry("b", "F32", "[2]", 4, 12)]), &[0; 12]),
            "tensors \"a\" and \"b\" overlap at byte 4",
        ),
        (file(&header(&[good.clone(), entry("b", "F32", "[2]", 0, 8)]), &[0; 8]), "overlap at byte 0"),
        (
            file(&header(&[good.clone(), entry("b", "F32", "[1]", 12, 16)]), &[0; 16]),
            "bytes 8 to 12 of the data, before tensor \"b\", belong to no tensor",
        ),
        (file(&header(&[entry("a", "F32", "[1]", 4, 8)]), &[0; 8]), "bytes 0 to 4"),
        (file(&header(&[good]), &[0; 9]), "1 bytes follow the last tensor"),
    ];
    for (bytes, expected) in cases {
        let text = refused(&bytes).to_string();
        assert!(text.contains(expected), "expected {expected:?}, found {text:?}");
        println!("{text}");
    }
}

/// Every prefix of a good file is refused, and no flipped bit brings anything down.
#[test]
fn truncated_and_damaged_files() {
    let good = file(&header(&[entry("a", "F32", "[2]", 0, 8), entry("b", "I8", "[3]", 8, 11)]), &[0; 11]);
    assert!(Header::parse(&good).is_ok());
    for n in 0..good.len() {
        assert!(Header::parse(&good[..n]).is_err(), "{n} bytes");
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        if let Ok(store) = Store::from_bytes("damaged", bad.into()) {
            for info in store.tensors() {
                assert_eq!(store.tensor(&info.name).unwrap().data.len(), info.bytes());
            }
        }
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        Self(folder)
    }

    fn error(&self) -> String {
        let text = Store::open(self.0.path()).err().unwrap().to_string();
        text.replace(&self.0.path().display().to_string(), "DIR")
    }
}

fn one(name: &str) -> Vec<u8> {
    file(&header(&[entry(name, "U8", "[2]", 0, 2)]), &[7, 8])
}

#[test]
fn shards() {
    let index = br#"{"metadata":{"total_size":4},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let (a, b) = (one("a"), one("b"));
    let good = Folder::new(&[(INDEX_NAME, index), ("1.safetensors", &a), ("2.safetensors", &b)]);
    let store = Store::open(good.0.path()).unwrap();
    assert_eq!((store.tensors().len(), store.files().len()), (2, 2));
    assert_eq!(&*store.tensor("b").unwrap().data, [7, 8]);
    assert!(store.tensor("b").unwrap().data.is_mapped());
    let named = Store::open(&good.0.path().join("2.safetensors")).unwrap();
    assert!(named.contains("b") && !named.contains("a"));

    assert_eq!(
        Folder::new(&[(INDEX_NAME, index), ("1.safetensors", &a)]).error(),
        "DIR/model.safetensors.index.json: shard \"2.safetensors\" is not there (1 of 2 shards are missing); \
         download the checkpoint again (metal-marlin pull)"
    );
    assert_eq!(
        Folder::new(&[(INDEX_NAME, index), ("1.safetensors", &a), ("2.safetensors", &one("c"))]).error(),
        "DIR/model.safetensors.index.json: tensor \"b\" should be in shard \"2.safetensors\", but is not there; \
         index and shards belong to different versions: download the checkpoint again"
    );
    assert_eq!(
        Folder::new(&[(INDEX_NAME, index), ("1.safetensors", &a), ("2.safetensors", &a)]).error(),
        "DIR/2.safetensors: tensor \"a\" is also in DIR/1.safetensors; each tensor must be in one shard only"
    );
    assert!(
        Folder::new(&[(INDEX_NAME, index), ("1.safetensors", &b), ("2.safetensors", &a)])
            .error()
            .contains("tensor \"a\" should be in shard \"1.safetensors\", but is in DIR/2.safetensors")
    );
    assert_eq!(
        Folder::new(&[(INDEX_NAME, br#"{"weight_map":{"a":"../1.safetensors"}}"#)]).error(),
        "DIR/model.safetensors.index.json: shard \"../1.safetensors\" lies outside the checkpoint's folder"
    );
    assert!(Folder::new(&[(INDEX_NAME, b"{}")]).error().contains("not an index of shards: missing field `weight_map`"));
    assert!(Folder::new(&[(INDEX_NAME, br#"{"weight_map":{}}"#)]).error().contains("the index lists no tensors"));
    assert!(
        Folder::new(&[(INDEX_NAME, index), ("1.safetensors", &a), ("2.safetensors", b"")])
            .error()
            .contains("DIR/2.safetensors: the file has 0 bytes")
    );
}

#[test]
fn folders_without_tensors() {
    assert!(
        Folder::new(&[("config.json", b"{}")])
            .error()
            .contains("no model.safetensors and no model.safetensors.index.json")
    );
    assert!(
        Folder::new(&[("pytorch_model.bin", b"")]).error().contains("no safetensors files (only \"pytorch_model.bin\"")
    );
    assert!(
        Folder::new(&[("a.safetensors", b""), ("b.safetensors", b"")]).error().contains("2 safetensors files but no")
    );
    assert!(Store::open(Path::new("/nowhere/model.safetensors")).is_err());
}
