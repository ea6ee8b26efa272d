//! Tests of events, endpoint lookups, full tables, and the number of instructions that the verifier processes. In the
//! tests, `a` is the addresses of one IP family, and `RULES` is the rule set of the pod.

use crate::kernel_and_memory::{FAMILIES, FORWARDED, KernelAndMemory, RULES, SYN, ip, wire};
use netpol_common::Direction::Ingress;
use netpol_common::{Endpoint, IfIndex, Reason};
use netpol_tests::program::{COUNT_TRAFFIC, INTERFACE, object, program_infos, test_object};

#[test]
fn a_denied_flow_causes_at_most_one_event_a_second() {
    let mut programs = KernelAndMemory::isolated(&[Ingress]);
    for a in FAMILIES {
        let denied = wire(&ip(a.client, a.pod).udp(1000, 99, b"12345678"));
        for _ in 0..5 {
            programs.run(Ingress, &denied);
        }
        let events = programs.kernel.events().unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        assert_eq!((events[0].reason, events[0].rule_set), (Reason::NoRule as u8, RULES));
        assert_eq!((events[0].destination_port, events[0].direction), (99_u16.to_be_bytes(), Ingress as u8));
        // The length in the event does not include the Ethernet header.
        assert_eq!(events[0].length as usize, denied.len() - 14);
        std::thread::sleep(std::time::Duration::from_millis(1300));
        programs.run(Ingress, &denied);
        let events = programs.kernel.events().unwrap();
        assert_eq!(events.iter().map(|event| event.suppressed).collect::<Vec<_>>(), [4]);
    }
}

#[test]
fn endpoints_are_found_in_the_array_and_the_overflow_map() {
    let mut programs = KernelAndMemory::isolated(&[Ingress]);
    let packet = wire(&ip("10.0.0.2", "10.0.0.1").tcp(1, 80, SYN, b""));
    // The array has 1024 slots for interfaces. The ifindex of `other` is 1024 more than `INTERFACE`, so both interfaces
    // have the same slot.
    let other = Endpoint { ifindex: IfIndex(INTERFACE + 1024), id: 2, ..programs.endpoint };
    programs.kernel.set_endpoint(&other).unwrap();
    assert!(!programs.kernel.run(Ingress, &packet, FORWARDED, 1).unwrap().passed, "passed without an endpoint");
    assert_eq!(programs.kernel.packet_count(0, Ingress, Reason::NoEndpoint).unwrap(), 1);
    let endpoint = programs.endpoint;
    programs.kernel.set_endpoint_in_overflow(&endpoint, &other).unwrap();
    assert_eq!(programs.run(Ingress, &packet), Reason::Rule, "the endpoint is found in the overflow map");
}

#[test]
fn a_full_flow_table_drops_packets_only_at_isolated_pods() {
    let (not_isolated, isolated) = (KernelAndMemory::isolated(&[]), KernelAndMemory::isolated(&[Ingress]));
    let packet = wire(&ip("10.0.0.2", "10.0.0.1").tcp(1, 80, SYN, b""));
    for (programs, expected) in [(not_isolated, Reason::NotIsolated), (isolated, Reason::FlowTableFull)] {
        // The flow table is full.
        programs.memory.room.set(false);
        assert_eq!(programs.memory.run(Ingress, &packet, INTERFACE, FORWARDED), expected);
    }
}

/// The verifier of Linux 5.10 processes at most a million instructions. For the same program, it processes more
/// instructions than newer verifiers do. So the limit of this test is far below a million. Since Linux 5.16, the
/// program's info has the number of processed instructions. It is about 150,000 on Linux 6.18, and varies by 10,000
/// with the order in which the compiler arranges the code.
#[test]
fn programs_stay_below_the_verifier_limit() {
    for enabled in [&[][..], &[COUNT_TRAFFIC]] {
        for (name, info) in program_infos(&object(), enabled).unwrap() {
            let count = info.verified_instruction_count().expect("only Linux 5.16 and newer report this number");
            println!("{name} {enabled:?}: {count} instructions");
            assert!(count < 220_000, "{name} {enabled:?}: the verifier processes {count} instructions, limit 220,000");
        }
    }
}

/// The agent and the tests load different BPF objects: the object for tests has additional programs. Each program of
/// the agent must have the same tag in both objects. The tag is the kernel's hash of the program's instructions.
#[test]
fn tests_run_the_shipped_programs() {
    let (shipped, tested) = (program_infos(&object(), &[]).unwrap(), program_infos(&test_object(), &[]).unwrap());
    let names: Vec<_> = shipped.keys().map(String::as_str).collect();
    assert_eq!(names, ["netpol_egress", "netpol_ingress", "netpol_recheck", "netpol_recheck_l3"]);
    for (name, info) in &shipped {
        assert_eq!(info.tag(), tested[name].tag(), "{name}: the objects differ: run `cargo xtask ebpf`");
    }
}
