use std::io::{BufReader, Read};

use leaderd::record::{Header, Reader, Records};
use serde::Serialize;

/// A recording, as a file and as the records within its compression: it is read to its end or refused in words, and what
/// is read is said again in the same bytes.
pub fn recording(bytes: &[u8]) {
    match Reader::new(BufReader::new(bytes)) {
        Ok(reader) => read(reader),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    read(Records::of(bytes));
}

fn read<R: Read>(mut records: Records<R>) {
    let Ok(header) = records.header() else { return };
    again::<Header>(&header);
    loop {
        match records.next_record() {
            Ok(Some(record)) => again(&record),
            Ok(None) => return assert!(records.tail().is_some()),
            Err(error) => return assert!(!error.to_string().is_empty()),
        }
    }
}

fn again<T: Serialize + serde::de::DeserializeOwned>(what: &T) {
    let said = postcard::to_stdvec(what).expect("plain data");
    let heard: T = postcard::from_bytes(&said).expect("what was said is understood");
    assert_eq!(postcard::to_stdvec(&heard).expect("plain data"), said);
}
