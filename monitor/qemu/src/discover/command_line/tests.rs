//! Real-life and hostile command lines.

mod lines;

use std::path::PathBuf;

use super::{Description, describe};
use crate::discover::{Encryption, ListeningSocket, ResetAction, SocketAt, ThreadsTold};
use lines::{LIBVIRT, PROXMOX};

fn read(line: &[&str]) -> Option<Description> {
    let arguments: Vec<String> = line.iter().map(|&argument| argument.to_owned()).collect();
    describe(&arguments)
}

fn after_qemu(line: &[&str]) -> Description {
    read(&[&["qemu-system-x86_64"], line].concat()).expect("a VM")
}

fn disks(description: &Description) -> Vec<(&str, &str)> {
    description.disks.iter().map(|disk| (disk.backend.as_str(), disk.path.as_str())).collect()
}

#[test]
fn the_agents_socket_is_known_where_it_has_a_path() {
    let socket = after_qemu(&PROXMOX[1..]).agent_socket.expect("a socket");
    assert_eq!(socket.chardev, "qga0");
    assert_eq!(socket.socket, ListeningSocket::at_path("/var/run/qemu-server/100.qga"));
    let handed_over = after_qemu(&LIBVIRT[1..]).agent_socket.expect("a socket").socket;
    assert!(matches!(handed_over.at, SocketAt::Descriptor(_)), "{handed_over:?}");
    let heart = [
        "-chardev",
        "socket,id=hb,path=/run/hb.sock,server=on,wait=off",
        "-device",
        "virtserialport,chardev=hb,name=org.flatline.heartbeat.0",
    ];
    let socket = after_qemu(&heart).heartbeat_socket.expect("a socket");
    assert_eq!(socket.chardev, "hb");
    assert_eq!(socket.socket, ListeningSocket::at_path("/run/hb.sock"));
    let port = "virtserialport,chardev=a,name=org.qemu.guest_agent.0";
    let client = after_qemu(&["-chardev", "socket,id=a,path=/a", "-device", port]);
    assert!(client.has_agent_channel && client.agent_socket.is_none());
}

#[test]
fn the_files_of_a_serial_console_are_found_in_every_form() {
    let logs = |line: &[&str]| after_qemu(line).console_logs;
    let path = |path: &str| vec![PathBuf::from(path)];
    assert_eq!(logs(&["-serial", "file:/a,b"]), path("/a,b"));
    assert_eq!(logs(&["-debugcon", "file:d"]), path("d"));
    assert_eq!(logs(&["-serial", "unix:/s,server=on,logfile=/l"]), path("/l"));
    assert_eq!(logs(&["-chardev", "file,id=c,path=/c", "-serial", "chardev:c"]), path("/c"));
    let json = r#"{"driver":"isa-serial","chardev":"charserial0","id":"serial0","index":0}"#;
    assert_eq!(
        logs(&["-chardev", "pty,id=charserial0,logfile=/v,logappend=on", "-device", json]),
        path("/v")
    );
    // A log of something else is no console.
    let other = ["-chardev", "file,id=c,path=/c", "-device", "virtserialport,chardev=c,name=x"];
    assert!(logs(&other).is_empty());
    assert!(logs(&["-serial", "stdio", "-serial", "chardev:none", "-serial", "file"]).is_empty());
}

#[test]
fn a_libvirt_guest_is_read() {
    let vm = read(LIBVIRT).expect("a VM");
    assert_eq!(vm.name.as_deref(), Some("db,1"));
    assert_eq!(vm.uuid.as_deref(), Some("7f3b6a10-58e2-4c6d-9a37-0d1c5e2b4f60"));
    assert_eq!(vm.accelerators, ["kvm"]);
    assert_eq!(vm.machine.as_deref(), Some("pc-q35-7.2"));
    assert_eq!(vm.vcpus, 4);
    assert_eq!(vm.reboot_action, ResetAction::Reset);
    assert_eq!(vm.qmp_sockets, [descriptor(21)]);
    assert_eq!((&vm.notes[..], &vm.unused_monitors[..]), (&[][..], &[][..]));
    assert_eq!(vm.unseen_networks, ["vfio-pci", "vhost-user"]);
    assert_eq!(disks(&vm), [("file", "/img/db.qcow2")]);
    assert!(vm.has_balloon && vm.has_agent_channel && !vm.daemonizes);
}

#[test]
fn a_proxmox_guest_is_read() {
    let vm = read(PROXMOX).expect("a VM");
    assert_eq!(vm.name.as_deref(), Some("web-1"));
    assert_eq!(vm.uuid.as_deref(), Some("0b9f6c1e-4a2d-4b7b-8c55-2f1e6d3a9b10"));
    assert_eq!(vm.accelerators, ["kvm", "tcg"]);
    assert_eq!(vm.machine.as_deref(), Some("pc+pve0"));
    assert_eq!(vm.vcpus, 6);
    assert_eq!(vm.qmp_sockets, [ListeningSocket::at_path("/var/run/qemu-server/100.qmp")]);
    assert_eq!(vm.unseen_networks, [""; 0]);
    assert_eq!(disks(&vm), [("host_device", "/dev/pve/vm-100-disk-0")]);
    assert!(vm.has_balloon && vm.has_agent_channel && vm.daemonizes);
    assert_eq!(vm.notes, [""; 0]);
    let leads_elsewhere = "QMP monitor qmp-event leads to a program that QEMU itself connects to";
    assert_eq!(vm.unused_monitors, [leads_elsewhere]);
}

#[test]
fn a_bare_qemu_has_the_defaults() {
    let vm = after_qemu(&["disk.qcow2"]);
    assert_eq!(vm.name, None);
    assert_eq!((vm.vcpus, vm.reboot_action), (1, ResetAction::Reset));
    assert_eq!(vm.accelerators, ["tcg", "kvm"]);
    assert_eq!(vm.unseen_networks, ["user"]);
    assert_eq!(disks(&vm), [("file", "disk.qcow2")]);
    assert!(!vm.has_balloon && !vm.has_agent_channel);
}

#[test]
fn accelerators_stand_in_the_order_in_which_they_are_tried() {
    for (line, expected) in [
        (&["-machine", "q35,accel=kvm:tcg"][..], &["kvm", "tcg"][..]),
        (&["-M", "q35", "-machine", "accel=tcg"], &["tcg"]),
        (&["-accel", "xen", "-accel", "tcg,thread=multi"], &["xen", "tcg"]),
        (&["--enable-kvm"], &["kvm"]),
    ] {
        assert_eq!(after_qemu(line).accelerators, expected, "{line:?}");
    }
}

#[test]
fn qmp_sockets_are_found_in_each_form_and_kept_as_told() {
    for line in [
        &["-qmp", "unix:run/q,,1.sock,server,nowait"][..],
        &["-qmp-pretty", "unix:path=run/q,,1.sock,server=on,wait=off"],
        &["-mon", "m,mode=control", "-chardev", "socket,id=m,path=run/q,,1.sock,server=yes,nowait"],
        &["-chardev", "socket,id=m,path=run/q,,1.sock,server=on,wait=no", "-qmp", "chardev:m"],
        &[
            "-chardev",
            "socket,id=m,path=run/q,,1.sock,server=on,wait=no",
            "-object",
            "monitor-qmp,id=q,chardev=m,pretty=on",
        ],
        &[
            "-object",
            r#"{"qom-type":"monitor-qmp","id":"q","chardev":"m"}"#,
            "-chardev",
            "socket,id=m,path=run/q,,1.sock,server=on,wait=off",
        ],
        &[
            "-mon",
            "chardev=m,mode=control",
            "-chardev",
            r#"{"id":"m","backend":{"type":"socket","data":{"addr":{"type":"unix","data":{"path":"run/q,1.sock"}},"server":true}}}"#,
        ],
    ] {
        let wanted = ListeningSocket::at_path("run/q,1.sock");
        assert_eq!(after_qemu(line).qmp_sockets, [wanted], "{line:?}");
    }
}

fn descriptor(number: i32) -> ListeningSocket {
    ListeningSocket { at: SocketAt::Descriptor(number), waits: false }
}

#[test]
fn sockets_that_were_handed_over_are_known_by_their_descriptors() {
    for line in [
        &["-qmp", "unix:fd=5,server,nowait"][..],
        &["-mon", "m,mode=control", "-chardev", "socket,id=m,fd=5,server=on,wait=off"],
        &[
            "-mon",
            "chardev=m,mode=control",
            "-chardev",
            r#"{"id":"m","backend":{"type":"socket","data":{"addr":{"type":"fd","data":{"str":"5"}}}}}"#,
        ],
    ] {
        assert_eq!(after_qemu(line).qmp_sockets, [descriptor(5)], "{line:?}");
    }
}

#[test]
fn a_socket_whose_client_is_waited_for_is_told_from_others() {
    let waits = |line: &[&str]| after_qemu(line).qmp_sockets[0].waits;
    assert!(waits(&["-qmp", "unix:/q,server"]) && waits(&["-qmp", "unix:/q,server=on,wait=on"]));
    assert!(!waits(&["-qmp", "unix:/q,server,nowait"]));
    let json = |wait: &str| {
        let addr = r#""addr":{"type":"unix","data":{"path":"/q"}}"#;
        let chardev =
            format!(r#"{{"id":"m","backend":{{"type":"socket","data":{{{addr}{wait}}}}}}}"#);
        waits(&["-mon", "m,mode=control", "-chardev", &chardev])
    };
    assert!(!json("") && json(r#","wait":true"#) && !json(r#","wait":false"#));
}

#[test]
fn threads_that_are_there_before_a_client_is_waited_for_are_counted() {
    let line = [
        "-object",
        "iothread,id=a",
        "-object",
        r#"{"qom-type":"iothread","id":"b"}"#,
        "-object",
        "secret,id=iothread",
    ];
    assert_eq!(after_qemu(&line).threads, ThreadsTold { early: 2, named: false });
    assert!(after_qemu(&["-name", "a,debug-threads=on"]).threads.named);
    assert!(
        !after_qemu(&["-name", "a,debug-threads=on", "-name", "debug-threads=off"]).threads.named
    );
}

#[test]
fn monitors_that_lead_elsewhere_are_not_taken() {
    for line in [
        &["-qmp", "unix:/somebody/listens"][..],
        &["-qmp", "tcp:localhost:4444,server=on"],
        &["-qmp", "unix:name,abstract=on,server=on"],
        &["-mon", "chardev=m", "-chardev", "socket,id=m,path=/hmp,server=on"],
        &["-object", "monitor-hmp,id=h,chardev=m", "-chardev", "socket,id=m,path=/hmp,server=on"],
        &["-monitor", "unix:/hmp,server=on"],
        &["-chardev", "socket,id=unused,path=/x,server=on"],
        &["-append", "-qmp unix:/x,server=on"],
        &["-append", "-qmp", "unix:/x,server=on"],
    ] {
        assert!(after_qemu(line).qmp_sockets.is_empty(), "{line:?}");
    }
    for (line, why) in [
        (&["-qmp", "unix:/somebody/listens"][..], "QEMU itself connects to"),
        (&["-qmp", "tcp:localhost:4444,server=on"], "-qmp tcp is no Unix socket"),
        (&["-qmp", "unix:name,abstract=on,server=on"], "abstract"),
        (&["-qmp", "unix:fd=named,server=on"], "under a name"),
        (&["-mon", "m,mode=control", "-chardev", "pty,id=m"], "m is no socket"),
        (
            &["-mon", "m,mode=control", "-chardev", "socket,id=m,port=7,server=on"],
            "m is a TCP socket",
        ),
    ] {
        let unused = after_qemu(line).unused_monitors;
        assert!(unused.len() == 1 && unused[0].contains(why), "{unused:?}");
    }
}

#[test]
fn the_last_word_on_reboots_counts() {
    for (line, expected) in [
        (&["-no-reboot"][..], ResetAction::Shutdown),
        (&["-action", "reboot=shutdown,shutdown=pause"], ResetAction::Shutdown),
        (&["-no-reboot", "-action", "reboot=reset"], ResetAction::Reset),
        (&["-no-reboot", "-action", "panic=none"], ResetAction::Shutdown),
        (&["-append", "-no-reboot"], ResetAction::Reset),
    ] {
        assert_eq!(after_qemu(line).reboot_action, expected, "{line:?}");
    }
}

#[test]
fn vcpus_are_counted_in_each_form() {
    for (line, expected) in [
        (&["-smp", "3"][..], 3),
        (&["-smp", "cpus=2,maxcpus=8"], 2),
        (&["-smp", "maxcpus=8"], 8),
        (&["-smp", "sockets=2,cores=2,threads=2"], 8),
        (&["-smp", "2", "-smp", "cores=2"], 2),
        (&["-machine", "q35,smp.cpus=5"], 5),
        (&["-smp", "lots"], 1),
        (&["-smp", "4294967295"], 4096),
        (&["-smp", "sockets=4294967295,cores=4294967295"], 4096),
    ] {
        assert_eq!(after_qemu(line).vcpus, expected, "{line:?}");
    }
}

#[test]
fn networks_without_a_tap_are_named() {
    for (line, expected) in [
        (&["-netdev", "user,id=n"][..], &["user"][..]),
        (&["-nic", "tap,ifname=t", "-nic", "vde"], &["vde"]),
        (&["-net", "nic", "-net", "tap"], &[]),
        (&["-nic", "none"], &[]),
        (&["-nodefaults"], &[]),
        (&["-nodefaults", "-device", "vfio-pci-nohotplug,host=1:0.0"], &["vfio-pci-nohotplug"]),
    ] {
        assert_eq!(after_qemu(line).unseen_networks, expected, "{line:?}");
    }
}

#[test]
fn what_starts_no_vm_is_none() {
    for line in [
        &["--version"][..],
        &["-h"],
        &["-accel", "help"],
        &["-M", "?"],
        &["-device", "virtio-blk-pci,help"],
        &["-nic", "help"],
        &["-S", "-no-user-config", "-nodefaults", "-machine", "none,accel=kvm:tcg", "-daemonize"],
        &["-M", "type=none"],
    ] {
        assert_eq!(read(&[&["qemu-system-x86_64"], line].concat()), None, "{line:?}");
    }
    assert_eq!(read(&[]), None);
    assert_eq!(after_qemu(&["-name", "help"]).name.as_deref(), Some("help"));
}

#[test]
fn names_are_made_fit_for_display() {
    let name = |value| after_qemu(&["-name", value]).name;
    assert_eq!(name("a\u{1b}[2Jb\n").as_deref(), Some("a\u{fffd}[2Jb\u{fffd}"));
    assert_eq!(name("foo,process=bar").as_deref(), Some("foo"));
    assert_eq!(name("debug-threads=on"), None);
    assert_eq!(name(&"x".repeat(1000)).map(|name| name.len()), Some(128));
}

#[test]
fn a_malformed_uuid_is_none() {
    assert_eq!(after_qemu(&["-uuid", "\u{1b}[2J"]).uuid, None);
    assert_eq!(after_qemu(&["-uuid", "0b9f6c1e4a2d4b7b8c552f1e6d3a9b10"]).uuid, None);
}

#[test]
fn a_hostile_command_line_is_read_and_cut_off() {
    let mut line = vec!["", "-", "--", "---", "-name", "", "-name", ",,,=", "-drive", "=,=,,"];
    line.extend(["-chardev", "{", "-device", "{}", "-mon", "mode=control", "-smbios", "é,=é"]);
    let networks: Vec<String> = (0..5000).map(|number| format!("n{number}")).collect();
    for network in &networks {
        line.extend(["-netdev", network.as_str(), "-hda", "x", "-qmp", "unix:s,server"]);
    }
    line.push("-blockdev");
    let vm = after_qemu(&line);
    for count in [vm.unseen_networks.len(), vm.disks.len(), vm.qmp_sockets.len()] {
        assert_eq!(count, 1024);
    }
}

#[test]
fn a_confidential_guest_is_known_in_every_form_of_its_options() {
    let encryption = |arguments: &[&str]| after_qemu(arguments).encryption;
    let json = r#"{"qom-type":"sev-guest","id":"lsec0","cbitpos":51,"policy":5}"#;
    for hidden in [
        &["-machine", "q35,confidential-guest-support=lsec0", "-object", json][..],
        &["-object", "sev-guest,id=lsec0,cbitpos=51,policy=0x7"],
        &["-object", "qom-type=sev-snp-guest,id=sev0,policy=0x30000"],
        &["-object", r#"{"qom-type":"tdx-guest","id":"tdx0"}"#],
        // What it refers to is in a file, or came by QMP.
        &["-readconfig", "/vm.cfg", "-M", "q35", "-machine", "memory-encryption=sev0"],
        &["-machine", r#"{"type":"q35","confidential-guest-support":"x"}"#],
    ] {
        let encryption = encryption(hidden);
        assert!(encryption.registers().is_err(), "{hidden:?}: {encryption:?}");
    }
    let sev = ["-machine", "pc,memory-encryption=sev0", "-object", "sev-guest,id=sev0,policy=0x1"];
    let sev = encryption(&sev);
    assert!(sev.registers().is_ok() && sev.memory().is_err(), "{sev:?}");
    for other in [&["-object", "memory-backend-ram,id=sev-guest,size=1G"][..], &["-M", "q35"]] {
        assert_eq!(encryption(other), Encryption::None);
    }
}
