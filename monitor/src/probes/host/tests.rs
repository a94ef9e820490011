use super::{
    cgroup::{Paths, keyed, of_first, of_second},
    threads::uninterruptible,
    *,
};

fn looked() -> HostSnapshot {
    HostSnapshot {
        at: Instant::now(),
        hanging: BTreeMap::new(),
        frozen: false,
        cpu: None,
        quotas: BTreeMap::new(),
        pressure: Vec::new(),
    }
}

/// A look with something in it, one second after `before`.
fn later(before: &HostSnapshot, change: impl FnOnce(&mut HostSnapshot)) -> HostSnapshot {
    let mut now = looked();
    now.at = before.at + Duration::from_secs(1);
    change(&mut now);
    now
}

fn hangs(look: &mut HostSnapshot, tid: u32) {
    let hanging = Hanging { name: "IO iothread1".into(), wchan: Some("nfs_wait_bit".into()) };
    look.hanging.insert(tid, hanging);
}

fn excuse(before: Option<&HostSnapshot>, now: &HostSnapshot) -> Option<String> {
    match judge(before, now) {
        Answer::Excuse(why) | Answer::Starved(why) => Some(why),
        Answer::Nothing(_) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_a_thread_that_hangs_in_two_rounds_excuses() {
    let mut before = looked();
    let now = later(&before, |now| hangs(now, 7));
    assert_eq!(excuse(None, &now), None);
    assert_eq!(excuse(Some(&before), &now), None);
    hangs(&mut before, 8);
    assert_eq!(excuse(Some(&before), &now), None, "another one");
    hangs(&mut before, 7);
    let why = excuse(Some(&before), &now).unwrap();
    assert!(why.contains("\"IO iothread1\" hangs in the kernel (D, in nfs_wait_bit)"), "{why}");
    let mut much_later = now;
    much_later.at = before.at + RECENT + Duration::from_secs(1);
    assert_eq!(excuse(Some(&before), &much_later), None);
}

#[test]
fn a_frozen_cgroup_and_stalls_excuse_at_once() {
    let mut now = looked();
    now.pressure = vec![("memory", PRESSURE_PERCENT), ("I/O", 3.5)];
    assert_eq!(excuse(None, &now), None);
    now.pressure[1].1 = 97.0;
    assert!(excuse(None, &now).unwrap().contains("I/O"));
    now.pressure.clear();
    now.frozen = true;
    assert!(excuse(None, &now).is_some());
}

#[test]
fn a_guest_that_spins_under_a_fair_quota_is_not_excused_and_one_that_hardly_runs_is() {
    let quota = |throttled_us, used_us| Quota { throttled_us, used_us };
    let path = || PathBuf::from("/sys/fs/cgroup/vm");
    let mut before = looked();
    before.quotas.insert(path(), quota(1_000_000, 5_000_000));
    let with = |throttled: u64, used: u64| {
        later(&before, |now| {
            now.quotas.insert(path(), quota(1_000_000 + throttled, 5_000_000 + used));
        })
    };
    assert_eq!(excuse(Some(&before), &with(700_000, 300_000)), None);
    // Four vCPUs that spin within one CPU.
    assert_eq!(excuse(Some(&before), &with(3_000_000, 1_000_000)), None);
    assert_eq!(excuse(Some(&before), &with(400_000, 0)), None, "it hardly wanted to run");
    let hardly = judge(Some(&before), &with(980_000, 10_000));
    assert!(matches!(&hardly, Answer::Starved(why) if why.contains("quota")), "{hardly:?}");
}

#[test]
fn steal_counts_against_what_was_demanded() {
    let mut before = looked();
    before.cpu = Some(CpuTime { demanded: 1000, stolen: 10 });
    let with = |demanded: u64, stolen: u64| {
        later(&before, |now| {
            now.cpu = Some(CpuTime { demanded: 1000 + demanded, stolen: 10 + stolen });
        })
    };
    let stolen = judge(Some(&before), &with(100, 60));
    assert!(matches!(&stolen, Answer::Starved(why) if why.contains("60 % stolen")), "{stolen:?}");
    assert_eq!(excuse(Some(&before), &with(100, 50)), None);
    assert_eq!(excuse(Some(&before), &with(10, 9)), None, "next to nothing was demanded");
    let mut back = with(0, 0);
    back.cpu = Some(CpuTime { demanded: 3, stolen: 2 });
    assert_eq!(excuse(Some(&before), &back), None, "counters that went back say nothing");
}

#[test]
fn the_kernels_files_are_read_as_they_are() {
    let stat = "cpu  522999 2405 107201 180815 2267 0 682 1085 13 0\ncpu0 1 2 3\n";
    let demanded = 522_999 + 2405 + 107_201 + 682 + 1085;
    assert_eq!(cpu_time(stat), Some(CpuTime { demanded, stolen: 1085 }));
    assert_eq!(cpu_time("cpu  1 2 3\n"), None);
    let pressure = "some avg10=0.53 avg60=0.48 avg300=0.32 total=34915597\n\
                    full avg10=61.26 avg60=0.10 avg300=0.07 total=13408701\n";
    assert_eq!(full_avg10(pressure), Some(61.26));
    assert_eq!(full_avg10("some avg10=70.00\n"), None);
    let second = "usage_usec 900\nuser_usec 1\nnr_periods 0\nnr_throttled 0\nthrottled_usec 70\n";
    assert_eq!(of_second(second), Some(Quota { throttled_us: 70, used_us: 900 }));
    assert_eq!(of_second("usage_usec 900\n"), None, "a root has no quota");
    let first = of_first("nr_periods 1\nnr_throttled 1\nthrottled_time 70000\n", "900000\n");
    assert_eq!(first, Some(Quota { throttled_us: 70, used_us: 900 }));
    assert_eq!(keyed("populated 1\nfrozen 1\n", "frozen"), Some(1));
    assert_eq!(keyed("frozenness 1\n", "frozen"), None);
    assert_eq!(uninterruptible("9 (a) D (b) S 1 2"), None);
    assert_eq!(uninterruptible("9 (a) S (b) D 1 2"), Some("a) S (b"));
    assert_eq!(uninterruptible(""), None);
}

#[test]
fn a_cgroups_path_is_found_in_both_versions_and_never_leads_elsewhere() {
    let text =
        "6:freezer:/vms/a\n4:cpuset:/x\n3:cpu,cpuacct:/vms/a:b/vcpu0\n0::/machine.slice/a.scope\n";
    let paths = Paths::parse(text);
    assert_eq!(paths.cpu, Some("vms/a:b/vcpu0".into()));
    assert_eq!(paths.freezer, Some("vms/a".into()));
    assert_eq!(paths.unified, Some("machine.slice/a.scope".into()));
    assert_eq!(Paths::parse("0::/../../etc\n1:cpu:/a/../b\nx\n:"), Paths::default());
    assert_eq!(Paths::parse("0::/\n").unified, Some(PathBuf::new()));
}

#[test]
fn a_healthy_process_of_this_host_is_looked_at_twice_and_nothing_is_found() {
    let own = std::process::id();
    let before = look(own);
    std::thread::sleep(LEAST_ELAPSED);
    let now = look(own);
    assert!(!now.frozen && now.cpu.is_some(), "{now:?}");
    assert!(now.cpu.unwrap().demanded >= before.cpu.unwrap().demanded);
    assert!(look(u32::MAX).hanging.is_empty());
}
