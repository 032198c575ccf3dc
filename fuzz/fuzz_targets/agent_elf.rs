//! Fuzz target of the reader of an executable's libraries: no ELF headers make it panic, and its output is
//! bounded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sandbox::linked_by;

fuzz_target!(|bytes: &[u8]| {
    // The input as it is, and with the ELF magic, which random bytes hardly ever have.
    let mut elf = bytes.to_vec();
    elf.splice(..elf.len().min(6), *b"\x7fELF\x02\x01");
    for file in [bytes, &elf] {
        if let Some(linked) = linked_by(file) {
            let all = linked.loader.iter().chain(&linked.needed).chain(&linked.search);
            assert!(all.into_iter().all(|path| path.as_os_str().len() <= 4096));
        }
    }
});
