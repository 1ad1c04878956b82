//! A hub on this machine, for tests: answers as it is told and remembers what it was asked.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

impl Request {
    /// First byte wanted.
    pub fn range(&self) -> usize {
        let range = self.headers.get("range").map(|r| r.trim_start_matches("bytes=").trim_end_matches('-'));
        range.map_or(0, |r| r.parse().unwrap())
    }
}

/// An answer. `cut` bytes of the body are sent, then the connection is closed.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub cut: Option<usize>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The part of `body` that `request` asks for.
    pub fn part(request: &Request, body: &[u8]) -> Self {
        let from = request.range();
        let status = if from > 0 { 206 } else { 200 };
        Self { status, body: body[from.min(body.len())..].to_vec(), ..Self::default() }
    }
}

type Answers = dyn Fn(&Request, usize) -> Reply + Send + Sync;

/// A server; it ends with the test.
pub struct Server {
    pub url: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers each request with `answer(request, how many requests for the same method and path came before)`.
    pub fn start(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (answer, kept): (Arc<Answers>, _) = (Arc::new(answer), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, log) = (answer.clone(), kept.clone());
                std::thread::spawn(move || serve(stream, &*answer, &log));
            }
        });
        Self { url, log }
    }

    pub fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// How often a path that ends with `end` was asked for with GET.
    pub fn gets(&self, end: &str) -> usize {
        self.log().iter().filter(|r| r.method == "GET" && r.path.ends_with(end)).count()
    }
}

fn serve(stream: TcpStream, answer: &Answers, log: &Mutex<Vec<Request>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let header = |line: String| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned()));
    let headers = lines.map_while(Result::ok).take_while(|l| !l.is_empty()).filter_map(header).collect();
    let request = Request { method, path, headers };
    let before = {
        let mut log = log.lock().unwrap();
        let same = log.iter().filter(|r| r.method == request.method && r.path == request.path).count();
        log.push(request.clone());
        same
    };
    let reply = answer(&request, before);
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|h| h.0 == "content-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    let body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
    let mut stream = stream;
    // The client may have gone; that is its business.
    let _ = stream.write_all((head + "\r\n").as_bytes());
    if request.method != "HEAD" {
        let _ = stream.write_all(body);
    }
}
