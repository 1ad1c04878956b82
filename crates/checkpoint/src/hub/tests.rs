use std::sync::Mutex;

use sha2::{Digest, Sha256};

use super::fake::{Reply, Request, Server};
use super::*;
use crate::{Checkpoint, Progress};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A tiny model: its files and the etag of each (a git hash for small files, SHA-256 for large ones).
fn files() -> Vec<(&'static str, Vec<u8>, String)> {
    let header = br#"{"a":{"dtype":"U8","shape":[100000],"data_offsets":[0,100000]}}"#;
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.extend((0..100_000).map(|i| (i * 7) as u8));
    let etag = sha(&weights);
    vec![
        ("config.json", br#"{"model_type":"llama"}"#.to_vec(), "aa11".repeat(10)),
        ("README.md", b"not wanted".to_vec(), "bb22".repeat(10)),
        ("onnx/model.safetensors", b"not wanted".to_vec(), "bb23".repeat(10)),
        ("consolidated.safetensors", b"not wanted".to_vec(), "bb24".repeat(10)),
        ("model.safetensors", weights, etag),
    ]
}

fn weights() -> (Vec<u8>, String) {
    let (_, bytes, etag) = files().pop().unwrap();
    (bytes, etag)
}

fn listing() -> String {
    let list: Vec<String> =
        files().iter().map(|f| format!(r#"{{"rfilename":"{}","size":{}}}"#, f.0, f.1.len())).collect();
    format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, list.join(","))
}

/// What a good hub answers.
fn good(request: &Request) -> Reply {
    if request.path.starts_with("/api/models/org/tiny/revision/main") {
        return Reply { status: 200, body: listing().into_bytes(), ..Reply::default() };
    }
    let name = request.path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")).unwrap_or_default();
    match files().into_iter().find(|f| f.0 == name) {
        Some((_, body, etag)) => Reply::part(request, &body).with("etag", format!("\"{etag}\"")),
        None => Reply::status(404),
    }
}

fn hub(server: &Server) -> (Hub, tempfile::TempDir) {
    let cache = tempfile::tempdir().unwrap();
    let mut hub = Hub::new(cache.path()).with_endpoint(&server.url);
    hub.retry_unit = std::time::Duration::from_millis(2);
    (hub, cache)
}

/// Pulls and returns the error's text, with the server's address replaced.
fn error(hub: &Hub, id: &str) -> String {
    let text = hub.pull(id, &()).unwrap_err().to_string().replace(&hub.endpoint, "HUB");
    println!("{text}");
    text
}

#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Progress for Told {
    fn start(&self, item: &str, done: u64, total: u64) {
        self.0.lock().unwrap().push(format!("{item} {done}/{total}"));
    }
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

#[test]
fn a_model_is_pulled_listed_opened_and_removed() {
    let server = Server::start(|r, _| good(r));
    let (hub, cache) = hub(&server);
    assert!(hub.list().unwrap().is_empty());
    let folder = hub.pull("org/tiny", &()).unwrap();
    assert_eq!(folder, cache.path().join("models--org--tiny/snapshots").join(COMMIT));
    let mut names: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    let (bytes, etag) = weights();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    #[cfg(unix)]
    assert_eq!(
        std::fs::read_link(folder.join("model.safetensors")).unwrap(),
        std::path::Path::new("../../blobs").join(&etag)
    );
    assert_eq!(std::fs::read_to_string(cache.path().join("models--org--tiny/refs/main")).unwrap(), COMMIT);

    let checkpoint = Checkpoint::open(hub.resolve("org/tiny").unwrap()).unwrap();
    assert_eq!((checkpoint.name.as_str(), checkpoint.store.tensors().len()), ("org/tiny", 1));
    assert_eq!(hub.resolve(&format!("org/tiny@{COMMIT}")).unwrap(), folder);

    // Pulling again fetches nothing but the list.
    let before = server.log().len();
    hub.pull("org/tiny", &()).unwrap();
    assert_eq!(server.log().len(), before + 1);

    let list = hub.list().unwrap();
    assert_eq!((list.len(), list[0].name.as_str(), list[0].incomplete), (1, "org/tiny", 0));
    assert_eq!(list[0].bytes, bytes.len() as u64 + 22);
    assert_eq!(list[0].refs["main"], COMMIT);
    assert_eq!(list[0].snapshots[COMMIT], folder);
    assert!(hub.remove("org/tiny@v1").unwrap_err().to_string().contains("all revisions"));
    assert_eq!(hub.remove("org/tiny").unwrap(), bytes.len() as u64 + 22);
    assert!(hub.list().unwrap().is_empty());
    let gone = format!(
        "org/tiny is not in the cache ({}); fetch it first: metal-marlin pull org/tiny",
        cache.path().display()
    );
    assert_eq!(hub.resolve("org/tiny").unwrap_err().to_string(), gone);
    assert_eq!(hub.remove("org/tiny").unwrap_err().to_string(), gone);
}

#[test]
fn a_cut_connection_is_resumed_within_one_pull() {
    let server = Server::start(|r, n| {
        let mut reply = good(r);
        if r.method == "GET" && r.path.ends_with("model.safetensors") && n < 3 {
            reply.cut = Some(20_000);
        }
        reply
    });
    let (hub, _cache) = hub(&server);
    let folder = hub.pull("org/tiny", &()).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights().0);
    let ranges: Vec<usize> = server
        .log()
        .iter()
        .filter(|r| r.method == "GET" && r.path.ends_with("model.safetensors"))
        .map(Request::range)
        .collect();
    assert_eq!(ranges, [0, 20_000, 40_000, 60_000]);
}

#[test]
fn half_a_file_is_said_and_resumed_by_the_next_pull() {
    let broken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let flag = broken.clone();
    let server = Server::start(move |r, _| {
        let mut reply = good(r);
        if r.method == "GET" && r.path.ends_with("model.safetensors") && flag.load(std::sync::atomic::Ordering::SeqCst)
        {
            reply.cut = Some(50_000_usize.saturating_sub(r.range()));
        }
        reply
    });
    let (hub, _cache) = hub(&server);
    assert_eq!(
        error(&hub, "org/tiny"),
        "model.safetensors: only 50000 of 100071 bytes came (after 5 attempts); run the command again: it resumes"
    );
    assert_eq!(hub.list().unwrap()[0].incomplete, 50_000);
    assert!(hub.resolve("org/tiny").is_err(), "a half-fetched model must not be found");
    broken.store(false, std::sync::atomic::Ordering::SeqCst);
    let told = Told::default();
    let folder = hub.pull("org/tiny", &told).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights().0);
    assert!(told.0.lock().unwrap().contains(&"model.safetensors 50000/100071".to_owned()), "{:?}", told.0);
}

#[test]
fn a_server_without_ranges_sends_everything_again() {
    let server = Server::start(|r, n| {
        let plain = Request { headers: Default::default(), ..r.clone() };
        let mut reply = good(&plain);
        if r.method == "GET" && r.path.ends_with("model.safetensors") && n == 0 {
            reply.cut = Some(30_000);
        }
        reply
    });
    let (hub, _cache) = hub(&server);
    let folder = hub.pull("org/tiny", &()).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights().0);
}

#[test]
fn statuses() {
    for (status, expected) in [
        (
            401,
            "org/tiny: the hub answers 401 (not authorised): the model does not exist, or is private or gated; \
             check the spelling, and set HF_TOKEN if it is gated",
        ),
        (
            403,
            "org/tiny: the hub answers 403 (forbidden): the model is gated; accept its terms at HUB/org/tiny \
             and set HF_TOKEN to a token that may read it",
        ),
        (404, "org/tiny: the hub answers 404 (not found); check the spelling of the name and the revision"),
        (418, "org/tiny: the hub answers 418; try again later"),
        (503, "org/tiny: the hub answers 503 (after 5 attempts); try again later"),
    ] {
        let server = Server::start(move |_, _| Reply::status(status));
        let (hub, _cache) = hub(&server);
        assert_eq!(error(&hub, "org/tiny"), expected);
        assert_eq!(server.log().len(), if status == 503 { 5 } else { 1 });
        assert!(hub.list().unwrap().is_empty(), "nothing may be left");
    }
    let server = Server::start(|_, _| Reply::status(401));
    let (hub, _cache) = hub(&server);
    assert!(error(&hub.with_token("secret"), "org/tiny").contains("it does not accept the token; check HF_TOKEN"));
    // A file that vanished is named.
    let server = Server::start(|r, _| if r.path.ends_with("model.safetensors") { Reply::status(404) } else { good(r) });
    let (hub, _cache) = self::hub(&server);
    assert!(error(&hub, "org/tiny").starts_with("org/tiny: model.safetensors: the hub answers 404"));
}

#[test]
fn passing_errors_are_retried() {
    let server = Server::start(|r, n| if n < 2 { Reply::status(502) } else { good(r) });
    let (hub, _cache) = hub(&server);
    let told = Told::default();
    hub.pull("org/tiny", &told).unwrap();
    assert!(told.0.lock().unwrap()[0].ends_with("answers 502; try again later; trying again"), "{:?}", told.0);
}

#[test]
fn wrong_contents_are_discarded() {
    let server = Server::start(|r, _| {
        let mut reply = good(r);
        if r.method == "GET" && r.path.ends_with("model.safetensors") {
            reply.body[500] ^= 1;
        }
        reply
    });
    let (hub, cache) = hub(&server);
    let text = error(&hub, "org/tiny");
    assert!(text.starts_with(&format!("model.safetensors: expected SHA-256 {}, found ", weights().1)), "{text}");
    assert!(text.ends_with("; the download was damaged and discarded, run the command again"));
    assert!(!cache.path().join("models--org--tiny/blobs").join(weights().1).exists());
    assert_eq!(hub.list().unwrap()[0].incomplete, 0);

    let server = Server::start(|r, _| {
        let mut reply = good(r);
        if r.method == "GET" && r.path.ends_with("config.json") {
            reply.body.extend(b"more");
        }
        reply
    });
    let (hub, _cache) = self::hub(&server);
    assert!(error(&hub, "org/tiny").starts_with("config.json: expected 22 bytes, found 26"));
}

/// Large files lie elsewhere; the token must not go there.
#[test]
fn redirects_do_not_leak_the_token() {
    let cdn = Server::start(|r, _| Reply::part(r, &weights().0).with("etag", "\"another\""));
    let elsewhere = format!("{}/cdn/blob?signature=x", cdn.url);
    let server = Server::start(move |r, _| {
        if r.path.ends_with("model.safetensors") {
            return Reply::status(302)
                .with("location", &elsewhere)
                .with("x-linked-etag", format!("\"{}\"", weights().1))
                .with("x-linked-size", weights().0.len().to_string());
        }
        // A renamed model: a redirect within the hub.
        match r.path.strip_prefix("/api/models/org/old/") {
            Some(rest) => Reply::status(307).with("location", format!("/api/models/org/tiny/{rest}")),
            None => good(&Request { path: r.path.replace("/org/old/", "/org/tiny/"), ..r.clone() }),
        }
    });
    let (hub, _cache) = hub(&server);
    let hub = hub.with_token("secret");
    let folder = hub.pull("org/old", &()).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights().0);
    assert!(server.log().iter().all(|r| r.headers.get("authorization").is_some_and(|t| t == "Bearer secret")));
    assert_eq!(cdn.log().len(), 1);
    assert!(cdn.log().iter().all(|r| !r.headers.contains_key("authorization")));

    let round = Server::start(|r, _| Reply::status(302).with("location", r.path.clone()));
    let (hub, _cache) = self::hub(&round);
    assert!(error(&hub, "org/tiny").contains("it redirects more than 10 times"));
}

#[test]
fn answers_that_make_no_sense() {
    for (body, expected) in [
        ("<html>", "org/tiny: the hub's answer is not understood: the list of files: expected value at line 1"),
        (r#"{"sha":"../../etc","siblings":[]}"#, "its commit is \"../../etc\""),
        (
            r#"{"sha":"0123456789","siblings":[{"rfilename":"model.gguf"},{"rfilename":"../x.safetensors"}]}"#,
            "org/tiny has no safetensors files (its files: model.gguf, ../x.safetensors)",
        ),
        (
            r#"{"sha":"0123456789","siblings":[{"rfilename":"model.safetensors","size":1152921504606846976}]}"#,
            "the disk is full: 1152921504606846976 bytes are needed",
        ),
    ] {
        let server = Server::start(move |_, _| Reply { status: 200, body: body.into(), ..Reply::default() });
        let (hub, _cache) = hub(&server);
        let text = error(&hub, "org/tiny");
        assert!(text.contains(expected), "{text}");
    }
    let server = Server::start(|r, _| match r.method.as_str() {
        "HEAD" => Reply::status(200).with("etag", "\"../../../evil\""),
        _ => good(r),
    });
    let (hub, _cache) = hub(&server);
    assert!(error(&hub, "org/tiny").contains("config.json has the etag \"../../../evil\""));
}

#[test]
fn no_network() {
    // A port nobody listens on: bound, then closed.
    let closed = format!("http://{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let cache = tempfile::tempdir().unwrap();
    let mut hub = Hub::new(cache.path()).with_endpoint(closed);
    hub.retry_unit = std::time::Duration::from_millis(1);
    let text = error(&hub, "org/tiny");
    assert!(text.starts_with("org/tiny: HUB cannot be reached: "), "{text}");
    assert!(text.ends_with(
        "(after 5 attempts); check the network (and HF_ENDPOINT, if set) and run the command again: it resumes"
    ));
    hub.offline = true;
    assert_eq!(error(&hub, "org/tiny"), "org/tiny cannot be fetched: HF_HUB_OFFLINE is set; unset it and try again");
}

#[test]
fn two_pulls_do_not_fight() {
    let server = Server::start(|r, _| {
        if r.method == "GET" && r.path.ends_with("model.safetensors") {
            std::thread::sleep(std::time::Duration::from_millis(150));
        }
        good(r)
    });
    let (hub, _cache) = hub(&server);
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| hub.pull("org/tiny", &()).unwrap())).collect();
        for pull in pulls {
            assert_eq!(std::fs::read(pull.join().unwrap().join("model.safetensors")).unwrap(), weights().0);
        }
    });
    assert_eq!(server.gets("model.safetensors"), 1);
}

#[test]
fn a_pull_can_be_stopped() {
    struct Stop;
    impl Progress for Stop {
        fn cancelled(&self) -> bool {
            true
        }
    }
    let server = Server::start(|r, _| good(r));
    let (hub, _cache) = hub(&server);
    assert!(matches!(hub.pull("org/tiny", &Stop).unwrap_err(), Error::Cancelled));
    hub.pull("org/tiny", &()).unwrap();
}

#[test]
fn ids() {
    let id = ModelId::parse("Qwen/Qwen3-0.6B@refs/pr/1").unwrap();
    assert_eq!((id.name.as_str(), id.revision.as_str()), ("Qwen/Qwen3-0.6B", "refs/pr/1"));
    assert_eq!(ModelId::parse("gpt2").unwrap().to_string(), "gpt2");
    for bad in
        ["", "a/b/c", "../x", "a/..", "a/b@", "a/b@../../x", "a b", "/a", "a/", "a/b\n", "a--b/c", "./models", "a/b?x"]
    {
        let text = ModelId::parse(bad).unwrap_err().to_string();
        assert!(text.contains("is no model id; expected org/name or org/name@revision"), "{bad:?}: {text}");
    }
}

#[test]
fn the_environment() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "from-file\n").unwrap();
    let path = token.path().display().to_string();
    let from = |vars: &[(&str, &str)]| {
        let vars: Vec<(String, String)> = vars.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Hub::from_lookup(move |name| vars.iter().find(|v| v.0 == name).map(|v| v.1.clone())).unwrap()
    };
    let plain = from(&[("HOME", "/home/u"), ("HF_TOKEN_PATH", "/nowhere")]);
    assert_eq!(plain.cache(), std::path::Path::new("/home/u/.cache/huggingface/hub"));
    assert_eq!((plain.endpoint.as_str(), plain.token.as_deref(), plain.offline), (PUBLIC_ENDPOINT, None, false));
    let moved = from(&[("HOME", "/home/u"), ("HF_HOME", "/data/hf"), ("HF_TOKEN", " t "), ("HF_HUB_OFFLINE", "1")]);
    assert_eq!(moved.cache(), std::path::Path::new("/data/hf/hub"));
    assert_eq!((moved.token.as_deref(), moved.offline), (Some("t"), true));
    let all = from(&[
        ("HF_HUB_CACHE", "/c"),
        ("HF_HOME", "/h"),
        ("HF_ENDPOINT", "https://mirror.example/"),
        ("HF_TOKEN_PATH", &path),
        ("HF_HUB_OFFLINE", "0"),
    ]);
    assert_eq!((all.cache(), all.endpoint.as_str()), (std::path::Path::new("/c"), "https://mirror.example"));
    assert_eq!((all.token.as_deref(), all.offline), (Some("from-file"), false));
}
