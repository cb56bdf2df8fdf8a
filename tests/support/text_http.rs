//! A minimal client for HTTP and JSON.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use super::examples::PATIENCE;

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The members of a JSON object: texts unescaped, everything else as it is written.
    pub fn json(&self) -> BTreeMap<String, String> {
        let mut rest = self.body.trim().strip_prefix('{').unwrap();
        let mut members = BTreeMap::new();
        loop {
            let (name, after) = text(rest.trim_start());
            let (value, after) = value(after.trim_start().strip_prefix(':').unwrap().trim_start());
            assert!(members.insert(name, value).is_none(), "{}", self.body);
            match after.trim_start().strip_prefix(',') {
                Some(after) => rest = after,
                None => {
                    assert_eq!(after.trim(), "}", "{}", self.body);
                    return members;
                }
            }
        }
    }
}

fn value(json: &str) -> (String, &str) {
    if json.starts_with('"') {
        return text(json);
    }
    let end = json.find([',', '}']).unwrap();
    (json[..end].trim().to_owned(), &json[end..])
}

/// A quoted text, and what follows it.
fn text(json: &str) -> (String, &str) {
    let mut characters = json.strip_prefix('"').unwrap().chars();
    let mut text = String::new();
    loop {
        match characters.next().unwrap() {
            '"' => return (text, characters.as_str()),
            '\\' => match characters.next().unwrap() {
                'u' => {
                    let digits: String = characters.by_ref().take(4).collect();
                    let code = u32::from_str_radix(&digits, 16).unwrap();
                    text.push(char::from_u32(code).unwrap());
                }
                escaped @ ('"' | '\\' | '/') => text.push(escaped),
                other => panic!("{other:?} is not escaped like that"),
            },
            character => {
                assert!(!character.is_control(), "{character:?} is not escaped");
                text.push(character);
            }
        }
    }
}

/// Sends these bytes and reads the answer to its end.
#[track_caller]
pub fn exchange(address: &str, request: &[u8]) -> Answer {
    let mut client = connect(address);
    client.write_all(request).unwrap();
    read_answer(client)
}

#[track_caller]
pub fn get(address: &str, path: &str) -> Answer {
    exchange(
        address,
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )
}

#[track_caller]
pub fn connect(address: &str) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

#[track_caller]
pub fn read_answer(mut client: TcpStream) -> Answer {
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = format!("content-length: {}", body.len());
    let has_length = |line: &str| line.eq_ignore_ascii_case(&length);
    assert!(head.lines().any(has_length), "{answer}");
    Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    }
}
