//! A program that leaves a checkpoint, resumes from one, and leaves outputs.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::time::Duration;

/// Bytes of the weights in a checkpoint: more than a segment.
const WEIGHTS_BYTES: usize = 1_500_001;
/// Pause of a trainer that waits for its end.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs the trainer: with `leads-out` it leaves a link to a file of the machine as its output, with `reads`
/// it reads its inputs, with `many` it leaves three checkpoints and names that are none, and with `too-large`
/// outputs of more bytes than their area has.
pub(crate) fn run(arguments: &[String]) -> io::Result<()> {
    let weights: Vec<u8> = (0..WEIGHTS_BYTES).map(|at| (at % 251) as u8).collect();
    if arguments.iter().any(|argument| argument == "leads-out") {
        return symlink("/etc/passwd", "/outputs/passwd");
    }
    if arguments.iter().any(|argument| argument == "too-large") {
        // Each is below the bound of the area, which has a bound for all.
        let sparse = |name: &str| fs::File::create(format!("/outputs/{name}"))?.set_len(100 << 20);
        return sparse("one").and_then(|()| sparse("two"));
    }
    if arguments.iter().any(|argument| argument == "reads") {
        return read_inputs();
    }
    if arguments.iter().any(|argument| argument == "many") {
        return leave_many();
    }
    match fs::read("/checkpoint/step-1/weights") {
        Ok(found) if found == weights => {}
        Ok(_) => return Err(io::Error::other("other bytes came back")),
        Err(_) => return leave(&weights),
    }
    println!("resumed from step-1");
    // A directory that was placed is the program's to change.
    fs::remove_dir_all("/checkpoint/step-1")?;
    fs::create_dir("/outputs/model")?;
    fs::write("/outputs/model/weights", &weights)
}

/// Reads the inputs, and tries to change them.
fn read_inputs() -> io::Result<()> {
    let (dataset, model) = (fs::read("/datasets/corpus/deep/part-0")?, fs::read("/models/tiny/weights.txt")?);
    println!("read {} and {} bytes", dataset.len(), model.len());
    for path in ["/datasets/corpus/deep/part-0", "/datasets/corpus/more", "/models/tiny/weights.txt"] {
        if fs::write(path, "other").is_ok() {
            return Err(io::Error::other(format!("{path} was written")));
        }
    }
    println!("inputs are read-only");
    Ok(())
}

/// Leaves three checkpoints, an empty one, one whose name is none, and one that leads out.
fn leave_many() -> io::Result<()> {
    fs::create_dir("/checkpoint/empty.part")?;
    fs::rename("/checkpoint/empty.part", "/checkpoint/empty")?;
    write_checkpoint("no name", b"x")?;
    fs::create_dir("/checkpoint/link.part")?;
    symlink("/etc/passwd", "/checkpoint/link.part/passwd")?;
    fs::rename("/checkpoint/link.part", "/checkpoint/link")?;
    for step in 1..=3 {
        write_checkpoint(&format!("step-{step}"), &[step; 1000])?;
    }
    Ok(())
}

/// Writes a directory of one file, and renames it to its name.
fn write_checkpoint(name: &str, weights: &[u8]) -> io::Result<()> {
    let (path, unfinished) = (format!("/checkpoint/{name}"), format!("/checkpoint/{name}.part"));
    fs::create_dir(&unfinished)?;
    fs::write(format!("{unfinished}/weights"), weights)?;
    fs::rename(unfinished, path)
}

/// Leaves a checkpoint, and one that is never renamed; then waits to be ended.
fn leave(weights: &[u8]) -> io::Result<()> {
    fs::create_dir("/checkpoint/in-place")?;
    fs::write("/checkpoint/in-place/weights", "half")?;
    write_checkpoint("step-1", weights)?;
    println!("left step-1");
    loop {
        std::thread::sleep(PAUSE);
    }
}
