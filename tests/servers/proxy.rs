//! A way to one server that can stop: what is on its way then arrives later, although its sender has gone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct Gate {
    stops: Mutex<Stops>,
    changed: Condvar,
    /// How many bytes have come back from the member.
    answered: AtomicUsize,
    /// Whether new connections end at once.
    refuses: AtomicBool,
    /// The connections of clients.
    clients: Mutex<Vec<TcpStream>>,
}

#[derive(Default, Clone, Copy)]
struct Stops {
    requests: bool,
    answers: bool,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    gate: Arc<Gate>,
}

impl Proxy {
    /// A proxy in front of `host:port`, at a port below it: the lock tries it first.
    pub(crate) fn before(endpoint: &str) -> Self {
        let target = endpoint.to_owned();
        let below = 9_000..10_000;
        let listener = below.clone().find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok()).unwrap();
        let (port, gate) = (listener.local_addr().unwrap().port(), Arc::new(Gate::default()));
        let shared = Arc::clone(&gate);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                if shared.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(member) = TcpStream::connect(&target) else { continue };
                let (to_client, to_member) = (client.try_clone().unwrap(), member.try_clone().unwrap());
                shared.clients.lock().unwrap().push(client.try_clone().unwrap());
                let (requests, answers) = (Arc::clone(&shared), Arc::clone(&shared));
                std::thread::spawn(move || requests.pass(client, to_member, |stops| stops.requests, false));
                std::thread::spawn(move || answers.pass(member, to_client, |stops| stops.answers, true));
            }
        });
        Self { port, gate }
    }

    /// From now on requests wait here.
    pub(crate) fn stop_requests(&self) {
        self.gate.set(Stops { requests: true, answers: false });
    }

    /// From now on answers wait here.
    pub(crate) fn stop_answers(&self) {
        self.gate.set(Stops { requests: false, answers: true });
    }

    /// From now on everything waits here.
    pub(crate) fn stop(&self) {
        self.gate.set(Stops { requests: true, answers: true });
    }

    /// From now on new connections end at once.
    #[allow(dead_code, reason = "for etcd")]
    pub(crate) fn refuse(&self) {
        self.gate.refuses.store(true, Ordering::SeqCst);
    }

    /// Ends all connections. New ones come through.
    pub(crate) fn cut(&self) {
        for client in self.gate.clients.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Lets everything pass that waits here, also from senders that have gone.
    pub(crate) fn go_on(&self) {
        self.gate.set(Stops::default());
    }

    pub(crate) fn answered(&self) -> usize {
        self.gate.answered.load(Ordering::SeqCst)
    }
}

impl Gate {
    fn set(&self, stops: Stops) {
        *self.stops.lock().unwrap() = stops;
        self.changed.notify_all();
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream, is_stopped: fn(Stops) -> bool, is_answer: bool) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if is_answer {
                self.answered.fetch_add(count, Ordering::SeqCst);
            }
            let stops = self.stops.lock().unwrap();
            drop(self.changed.wait_while(stops, |stops| is_stopped(*stops)).unwrap());
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        // A member reads on although the client has gone. So what is on its way is carried out, and the answer is lost.
        if is_answer {
            let _ = to.shutdown(Shutdown::Both);
        }
    }
}
