//! A fake daemon: it serves the control socket's routes and makes its figures up. No guest stands behind it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The fake; dropping it ends it.
pub(super) struct FakeDaemon {
    config: PathBuf,
    socket: PathBuf,
    stop: Arc<AtomicBool>,
    /// How often it was asked how all VMs stand.
    asked: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl FakeDaemon {
    /// Serves `vms` VMs, with a configuration that names its socket.
    pub(super) fn start(dir: &Path, vms: u32) -> Result<Self> {
        let run = dir.join("run");
        std::fs::create_dir_all(&run)?;
        let config = dir.join("fake.toml");
        std::fs::write(
            &config,
            format!("[paths]\nruntime_dir = {}\n", json!(run.display().to_string())),
        )?;
        let socket = run.join("control.sock");
        let listener = UnixListener::bind(&socket).context("cannot listen")?;
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopping, count) = (stop.clone(), asked.clone());
        let serve = move || {
            for stream in listener.incoming() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away is no fault of the fake's.
                if let Ok(stream) = stream {
                    let _ = answer(stream, vms, &count);
                }
            }
        };
        let thread = thread::Builder::new().name("fake daemon".to_owned()).spawn(serve)?;
        Ok(Self { config, socket, stop, asked, thread: Some(thread) })
    }

    pub(super) fn config_path(&self) -> &Path {
        &self.config
    }

    /// How often it was asked how all VMs stand.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // It waits for a client.
        let _ = UnixStream::connect(&self.socket);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            eprintln!("the fake daemon panicked");
        }
    }
}

fn answer(mut stream: UnixStream, vms: u32, asked: &AtomicU64) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut field = String::new();
    while reader.read_line(&mut field)? > 2 {
        field.clear();
    }
    let (status, reply) = match request.split(' ').nth(1) {
        Some("/status") => {
            let tick = asked.fetch_add(1, Ordering::SeqCst) + 1;
            let all: Vec<Value> = (0..vms).map(|number| vm(number, tick)).collect();
            ("200 OK", json!({"host": host(vms), "vms": all}))
        }
        Some("/lines") => {
            let all: Vec<Value> = (0..vms).map(lines).collect();
            ("200 OK", json!({"interval_seconds": 1.0, "vms": all}))
        }
        _ => ("404 Not Found", json!({"kind": "no-such-vm", "message": "this daemon is a fake"})),
    };
    let body = reply.to_string();
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(())
}

fn name(number: u32) -> String {
    format!("fake-{number:04}")
}

fn host(vms: u32) -> Value {
    json!({"version": "0", "hostname": "fake", "kernel": "0", "uptime_seconds": 1,
        "mode": "observe", "vms": vms, "degraded": null, "probes": []})
}

/// A VM of which every figure changes from tick to tick; one in a hundred is silent.
fn vm(number: u32, tick: u64) -> Value {
    let silent = number % 100 == 7;
    let n = u64::from(number);
    let moved = if silent { 0 } else { tick * (1 + n % 50) + tick * tick % (n % 7 + 2) };
    let busy = u32::try_from((n + tick * 13) % 97).unwrap_or(0);
    json!({"name": name(number), "uuid": format!("00000000-0000-4000-8000-{number:012}"),
        "pid": 10_000 + number, "accelerator": "kvm",
        "owner": {"kind": "libvirt", "name": name(number), "certain": true, "actuator": "libvirt",
            "refusal": null},
        "run_state": "running", "state": if silent { "suspect" } else { "alive" }, "cause": null,
        "reason": format!("guest sent {moved} packets and completed {tick} requests"),
        "since": "2026-11-22T10:00:00Z", "flat_seconds": if silent { 12.0 } else { 0.4 },
        "restarts_in_window": 0, "hold": null, "guest_resets_in_window": 0,
        "vcpus": [{"id": 0, "tid": 5, "busy_ratio": f64::from(busy) / 100.0},
            {"id": 1, "tid": 6, "busy_ratio": 0.01}],
        "network": {"guest_tx_packets": moved, "guest_tx_bytes": moved * 900,
            "guest_rx_packets": moved * 2, "guest_rx_bytes": moved * 1800,
            "guest_last_sent_seconds": 0.5, "probe_answers": 0, "arp_answers": 0, "ndp_answers": 0},
        "storage": {"read_ops": tick, "read_bytes": 4096 * tick, "write_ops": 1, "write_bytes": 1,
            "writeback_ops": 0, "writeback_bytes": 0, "flush_ops": 0, "discard_ops": 0,
            "discard_bytes": 0, "completed_ops": if silent { 0 } else { tick * 3 }, "failed_ops": 0,
            "completion_seconds": 0.25, "in_flight": n % 3, "oldest_in_flight_seconds": null,
            "mean_in_flight_seconds": null},
        "heartbeat": null, "memory": {}})
}

fn lines(number: u32) -> Value {
    let row = |most: u32| (0..120).map(|tick| (number * 7 + tick * 13) % most).collect::<Vec<_>>();
    json!({"name": name(number), "pid": 10_000 + number, "start_ticks": 1,
        "packets_from_guest": row(50), "packets_to_guest": row(90), "completed": row(9),
        "vcpu": row(2), "in_flight": row(3)})
}
