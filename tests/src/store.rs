//! Stores of a test's own, which can stall: loop devices, file systems on them, and FUSE exports. Each is taken
//! down when it is dropped, and what stalls goes on, also if the test process is killed.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{command, interrupt, stopped::Stopped};

/// A file that the kernel shows as a block device.
#[derive(Debug)]
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// Makes the file, unless it is there, and the device. With `direct`, the kernel reads and writes the file
    /// past the page cache, so that the pages that it is handed travel further down.
    ///
    /// # Errors
    ///
    /// If the file cannot be made, or `losetup` fails.
    pub fn new(file: &Path, bytes: u64, direct: bool) -> Result<Self> {
        if !file.exists() {
            File::create(file)?.set_len(bytes)?;
        }
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]);
        if direct {
            losetup.arg("--direct-io=on");
        }
        let device = command::run_command(losetup.arg(file))?;
        Ok(Self(PathBuf::from(String::from_utf8(device)?.trim())))
    }

    /// Below `/dev`.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = command::run("losetup", ["--detach".as_ref(), self.0.as_os_str()]) {
            eprintln!("{error:#}");
        }
    }
}

/// A file system on a loop device, mounted.
#[derive(Debug)]
pub struct FileSystem {
    mount_point: PathBuf,
    // Dropped after the file system is unmounted.
    device: LoopDevice,
}

impl FileSystem {
    /// Why there can be none of this kind.
    pub fn refusal(kind: &str) -> Option<String> {
        let program = format!("mkfs.{kind}");
        if Command::new(&program).arg("-V").stdin(Stdio::null()).output().is_err() {
            return Some(format!("no {program}"));
        }
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        let known = known.lines().any(|line| line.trim_start_matches("nodev").trim() == kind);
        // As a module it may be loaded at the first mount.
        let module = command::run("modprobe", ["--dry-run", kind]);
        (!known && module.is_err()).then(|| format!("this kernel has no {kind}"))
    }

    /// Makes one on a file in `dir`. See [`LoopDevice::new`] for `direct`.
    ///
    /// # Errors
    ///
    /// If `mkfs` or `mount` fails.
    pub fn new(kind: &str, dir: &Path, bytes: u64, direct: bool) -> Result<Self> {
        let device = LoopDevice::new(&dir.join(format!("{kind}.fs")), bytes, direct)?;
        let mount_point = dir.join(format!("{kind}.mnt"));
        fs::create_dir(&mount_point)?;
        command::run(&format!("mkfs.{kind}"), [device.path()])?;
        command::run("mount", [device.path(), &mount_point])?;
        Ok(Self { mount_point, device })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Has the kernel's own workers write back all that is dirty.
    ///
    /// # Errors
    ///
    /// If `sync` fails.
    pub fn sync(&self) -> Result<()> {
        command::run("sync", ["--file-system".as_ref(), self.mount_point.as_os_str()]).map(drop)
    }

    /// How much the kernel reads at once where it guesses what will be wanted.
    ///
    /// # Errors
    ///
    /// If there is no such knob.
    pub fn set_read_ahead(&self, kib: u32) -> Result<()> {
        let device = self.device.path().file_name().context("it has a name")?;
        let knob = Path::new("/sys/block").join(device).join("queue/read_ahead_kb");
        fs::write(&knob, kib.to_string()).with_context(|| format!("cannot set {}", knob.display()))
    }

    /// Freezes it until the value is dropped.
    ///
    /// # Errors
    ///
    /// If it is the machine's own, or `fsfreeze` fails.
    pub fn freeze(&self) -> Result<Frozen> {
        ensure!(self.mount_point != Path::new("/"), "never the machine's own");
        // A shell of its own thaws it, also if no test is left to tell it to.
        let mut shell = Command::new("sh")
            .args(["-c", r#"fsfreeze -f "$1" && echo frozen && read -r _; fsfreeze -u "$1""#, "sh"])
            .arg(&self.mount_point)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (stdin, stdout) = (shell.stdin.take(), shell.stdout.take());
        let frozen = Frozen { shell, stdin };
        let mut line = String::new();
        BufReader::new(stdout.context("the pipe was asked for")?).read_line(&mut line)?;
        ensure!(line == "frozen\n", "{} cannot be frozen", self.mount_point.display());
        Ok(frozen)
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        if let Err(error) = command::run("umount", [&self.mount_point]) {
            eprintln!("{error:#}");
        }
    }
}

/// A file system in memory that takes no more than so many bytes.
#[derive(Debug)]
pub struct Memory(PathBuf);

impl Memory {
    /// Mounts one below `dir`.
    ///
    /// # Errors
    ///
    /// If it cannot be mounted.
    pub fn new(dir: &Path, bytes: u64) -> Result<Self> {
        let mount_point = dir.join("memory.mnt");
        fs::create_dir(&mount_point)?;
        Self::on(&mount_point, bytes)
    }

    /// Mounts one on a directory that is there.
    ///
    /// # Errors
    ///
    /// If it cannot be mounted.
    pub fn on(mount_point: &Path, bytes: u64) -> Result<Self> {
        let options = format!("size={bytes}");
        let words = ["-t", "tmpfs", "-o", &options, "tmpfs"].map(AsRef::as_ref);
        command::run("mount", words.into_iter().chain([mount_point.as_os_str()]))?;
        Ok(Self(mount_point.to_owned()))
    }

    /// Gives it more room, or less.
    ///
    /// # Errors
    ///
    /// If it cannot be mounted again.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        self.remount(&format!("size={bytes}"))
    }

    /// Has it take no writes any more, or take them again.
    ///
    /// # Errors
    ///
    /// If it cannot be mounted again, as while a file is open for writing.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        self.remount(if read_only { "ro" } else { "rw" })
    }

    fn remount(&self, options: &str) -> Result<()> {
        let options = format!("remount,{options}");
        let words = ["-o", &options].map(AsRef::as_ref);
        command::run("mount", words.into_iter().chain([self.0.as_os_str()]))?;
        Ok(())
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Err(error) = command::run("umount", [&self.0]) {
            eprintln!("{error:#}");
        }
    }
}

/// A file system that takes no writes.
#[derive(Debug)]
pub struct Frozen {
    shell: Child,
    stdin: Option<ChildStdin>,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // The end of its input is what the shell waits for.
        drop(self.stdin.take());
        if let Err(error) = self.shell.wait() {
            eprintln!("{error:#}");
        }
    }
}

/// A file that a process serves through FUSE: what is done to it never reaches the block layer by itself.
#[derive(Debug)]
pub struct FuseExport {
    server: Child,
    file: PathBuf,
}

impl FuseExport {
    /// Why there can be none.
    pub fn refusal() -> Option<String> {
        let exports = Command::new("qemu-storage-daemon").arg("--help").output();
        match exports {
            Err(error) => Some(format!("no qemu-storage-daemon: {error}")),
            Ok(help) if !String::from_utf8_lossy(&help.stdout).contains("]fuse,") => {
                Some("this qemu-storage-daemon has no FUSE".to_owned())
            }
            Ok(_) if !Path::new("/dev/fuse").exists() => Some("no /dev/fuse".to_owned()),
            Ok(_) => None,
        }
    }

    /// Serves `dir/NAME.raw`, of `bytes`, as `dir/NAME.fuse`.
    ///
    /// # Errors
    ///
    /// If qemu-storage-daemon does not serve it within 10 s.
    pub fn new(dir: &Path, name: &str, bytes: u64) -> Result<Self> {
        let image = dir.join(format!("{name}.raw"));
        File::create(&image)?.set_len(bytes)?;
        let file = dir.join(format!("{name}.fuse"));
        File::create(&file)?;
        // It must not outlive the test, least of all stopped: what waits for it would for ever.
        let mut server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-storage-daemon", "--blockdev"])
            .arg(format!("driver=file,node-name=image,filename={}", image.display()))
            .arg("--export")
            .arg(format!(
                "type=fuse,id=export,node-name=image,mountpoint={},writable=on",
                file.display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start setpriv")?;
        let served = interrupt::wait_until("the FUSE export", Duration::from_secs(10), || {
            if let Some(status) = server.try_wait()? {
                bail!("qemu-storage-daemon ended: {status}");
            }
            Ok((fs::metadata(&file)?.len() == bytes).then_some(()))
        });
        let export = Self { server, file };
        served?;
        Ok(export)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Stops the server until the value is dropped, which must come before what uses the file is ended.
    ///
    /// # Errors
    ///
    /// If the server is gone.
    pub fn stop(&self) -> Result<Stopped> {
        Stopped::new(Pid::from_child(&self.server))
    }
}

impl Drop for FuseExport {
    fn drop(&mut self) {
        // It unmounts its file.
        let asked = kill_process(Pid::from_child(&self.server), Signal::TERM);
        if let Err(error) = asked.map_err(std::io::Error::from).and_then(|()| self.server.wait()) {
            eprintln!("{error:#}");
        }
    }
}
