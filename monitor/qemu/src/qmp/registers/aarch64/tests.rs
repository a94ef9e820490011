//! The texts are what QEMU 7.2.22 printed for a few words of machine code, line ends aside: it sends `\r\n`.

use super::{super::MAX_VCPUS, *};

/// `-cpu max`, two vCPUs: the first waits in `wfi`, the second was never started.
const WAITS: &str = "
CPU#0
 PC=0000000040400004 X00=0000000000000000 X01=0000000000000000
X02=0000000000000000 X03=0000000000000000 X04=0000000000000000
X05=0000000000000000 X06=0000000000000000 X07=0000000000000000
X08=0000000000000000 X09=0000000000000000 X10=0000000000000000
X11=0000000000000000 X12=0000000000000000 X13=0000000000000000
X14=0000000000000000 X15=0000000000000000 X16=0000000000000000
X17=0000000000000000 X18=0000000000000000 X19=0000000000000000
X20=0000000000000000 X21=0000000000000000 X22=0000000000000000
X23=0000000000000000 X24=0000000000000000 X25=0000000000000000
X26=0000000000000000 X27=0000000000000000 X28=0000000000000000
X29=0000000000000000 X30=0000000000000000  SP=0000000000000000
PSTATE=400003c5 -Z-- EL1h  SVCR=00000000 --  BTYPE=0    FPU disabled

CPU#1
 PC=0000000000000000 X00=0000000000000000 X01=0000000000000000
X02=0000000000000000 X03=0000000000000000 X04=0000000000000000
X05=0000000000000000 X06=0000000000000000 X07=0000000000000000
X08=0000000000000000 X09=0000000000000000 X10=0000000000000000
X11=0000000000000000 X12=0000000000000000 X13=0000000000000000
X14=0000000000000000 X15=0000000000000000 X16=0000000000000000
X17=0000000000000000 X18=0000000000000000 X19=0000000000000000
X20=0000000000000000 X21=0000000000000000 X22=0000000000000000
X23=0000000000000000 X24=0000000000000000 X25=0000000000000000
X26=0000000000000000 X27=0000000000000000 X28=0000000000000000
X29=0000000000000000 X30=0000000000000000  SP=0000000000000000
PSTATE=400003c5 -Z-- EL1h  SVCR=00000000 --  BTYPE=0    FPU disabled
";

/// `-cpu cortex-a57`: loops at EL0.
const USER: &str = "
CPU#0
 PC=0000000040400010 X00=0000000040400010 X01=0000000000000000
X29=0000000000000000 X30=0000000000000000  SP=0000000000000000
PSTATE=00000000 ---- EL0t    FPU disabled
";

/// `-cpu cortex-a15`, a 32-bit guest, at its reset vector's loop.
const BITS_32: &str = "
CPU#0
R00=00000000 R01=00000000 R02=00000000 R03=00000000
R04=00000000 R05=00000000 R06=00000000 R07=00000000
R08=00000000 R09=00000000 R10=00000000 R11=00000000
R12=00000000 R13=00000000 R14=00000000 R15=40400000
PSR=400001d3 -Z-- A svc32
s00=00000000 s01=00000000 d00=0000000000000000
FPSCR: 00000000
";

fn parsed(text: &str) -> Vec<ArmRegisters> {
    let vcpus = parse_arm_registers(text).unwrap();
    assert_eq!(parse_arm_registers(&text.replace('\n', "\r\n")).unwrap().len(), vcpus.len());
    vcpus
}

/// Linux 6.1 on two vCPUs, after a panic of the second, which loops; that parked the first.
const PANICKED: &str = "
CPU#0
 PC=ffffdc13e6e26ae8 X00=0000000000000000 X01=0000000000000000
X02=0000000000000000 X03=ffffdc13e8abe908 X04=ffffdc13e8abe888
X20=ffff0d8c82569600 X21=ffffdc13e8604008 X22=0000000000000000
X29=ffff800008003f10 X30=ffffdc13e6e26adc  SP=ffff800008003f10
PSTATE=600003c5 -ZC- EL1h     FPCR=00000000 FPSR=00000000
Q00=0000000000000000:0000000000000000 Q01=6e656d656c707075:53000a7525203a64

CPU#1
 PC=ffffdc13e7a98d98 X00=ffffdc13e7a98d90 X01=ffff3178a7927000
X02=0000000000000001 X03=0000000000000000 X04=0000000000000000
X20=000000003b21c2a7 X21=ffffffffc4de55c3 X22=0000000000001068
X29=ffff80000802b7f0 X30=ffffdc13e7a98d90  SP=ffff80000802b7f0
PSTATE=80000005 N--- EL1h     FPCR=00000000 FPSR=00000000
";

#[test]
fn a_vcpu_that_waits_and_one_that_was_never_started_are_told_apart() {
    let [waits, off] = parsed(WAITS)[..] else { panic!("two vCPUs") };
    assert_eq!((waits.index, waits.pc, waits.level), (0, 0x4040_0004, ArmLevel::Kernel));
    assert!(waits.irqs_masked && !waits.in_upper_half && !waits.is_off());
    assert!(off.index == 1 && off.is_off());
}

#[test]
fn user_code_is_told_by_its_exception_level_or_its_mode() {
    let user = parsed(USER)[0];
    assert!(user.level == ArmLevel::User && !user.irqs_masked && !user.is_off());
    let kernel = parsed(BITS_32)[0];
    let found = (kernel.pc, kernel.level, kernel.irqs_masked, kernel.all_masked);
    assert_eq!(found, (0x4040_0000, ArmLevel::Other, true, false));
    // What a 64-bit kernel's 32-bit program shows.
    let text = BITS_32.replace("PSR=400001d3 -Z-- A svc32", "PSR=60000010 -ZC- A NS usr32");
    let program = parsed(&text)[0];
    assert!(program.level == ArmLevel::User && !program.irqs_masked);
    let hypervisor = parsed(&USER.replace("EL0t", "EL2h"))[0];
    assert_eq!(hypervisor.level, ArmLevel::Other);
}

#[test]
fn a_kernel_stands_in_the_upper_half() {
    let linux = USER.replace("PC=0000000040400010", "PC=ffff800008ed6c2c").replace("EL0t", "EL1h");
    assert!(parsed(&linux)[0].in_upper_half);
    let linux = BITS_32.replace("R15=40400000", "R15=c0109abc");
    assert!(parsed(&linux)[0].in_upper_half);
}

#[test]
fn a_parked_vcpu_and_one_that_loops_are_told_apart() {
    let [parked, loops] = parsed(PANICKED)[..] else { panic!("two vCPUs") };
    assert!(parked.all_masked && parked.irqs_masked && parked.in_upper_half);
    assert_eq!((parked.level, parked.sp), (ArmLevel::Kernel, 0xffff_8000_0800_3f10));
    assert!(!loops.all_masked && !loops.irqs_masked && loops.in_upper_half);
    assert_eq!((loops.level, loops.sp), (ArmLevel::Kernel, 0xffff_8000_0802_b7f0));
    // One that idles masks interrupts alone.
    let idle = parsed(&PANICKED.replace("PSTATE=600003c5", "PSTATE=600000c5"))[0];
    assert!(idle.irqs_masked && !idle.all_masked);
}

#[test]
fn the_digests_are_of_the_general_registers_and_of_those_that_outlive_calls() {
    let digest = |text: &str| parsed(text)[0].general_digest;
    let kept = |text: &str| parsed(text)[1].kept_digest;
    let counted = PANICKED.replace("X20=000000003b21c2a7", "X20=000000003b21c2a8");
    assert_ne!(kept(PANICKED), kept(&counted));
    assert_eq!(digest(PANICKED), digest(&counted), "of the other vCPU");
    let polled = PANICKED.replace("X02=0000000000000001", "X02=0000000000000002");
    assert_eq!(kept(PANICKED), kept(&polled));
    assert_ne!(parsed(PANICKED)[1].general_digest, parsed(&polled)[1].general_digest);
    let moved = PANICKED.replace("PC=ffffdc13e6e26ae8", "PC=ffffdc13e6e26aec");
    assert_eq!(digest(PANICKED), digest(&moved));
    assert_ne!(digest(PANICKED), digest(&PANICKED.replace("  SP=ffff8", "  SP=ffff9")));
    assert_ne!(digest(USER), digest(&USER.replace("X30=0", "X30=1")));
    assert_eq!(digest(USER), digest(&USER.replace("FPU disabled", "FPCR=00000000")));
}

#[test]
fn what_can_not_be_read_is_an_error_and_no_guess() {
    for text in [
        "",
        "unknown command: 'info registers'\r\n",
        "CPU#\n PC=0\nPSTATE=000003c5 ---- EL1h\n",
        "CPU#0\n PC=0 X00=0\nPSTATE=000003c5 ---- EL1h\n",
        "CPU#0\nX00=0 SP=0\nPSTATE=000003c5 ---- EL1h\n",
        "CPU#0\n PC=0000000040400004 SP=0\nPSTATE=000003c5 ----\n",
        "CPU#0\n PC=0000000040400004 SP=0\nPSTATE=000003c5 ---- EL4h\n",
        "CPU#0\n PC=0000000040400004\n",
        "CPU#0\n PC=nowhere SP=0\nPSTATE=000003c5 ---- EL1h\n",
        // QEMU 7.2's RISC-V.
        "CPU#0\n V      =   0\n pc       0000000080000000\n",
    ] {
        assert!(parse_arm_registers(text).is_err(), "{text}");
    }
    let many = "CPU#0\n PC=0 SP=0\nPSTATE=0 ---- EL0t\n".repeat(MAX_VCPUS + 1);
    assert_eq!(parse_arm_registers(&many), Err(RegistersError::TooManyVcpus));
}
