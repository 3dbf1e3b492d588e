//! The codec of calls to modules. An answer that does not decode is still an answer, distinct from a
//! transport error; tonic's own codec would not distinguish them.

use std::marker::PhantomData;

use prost::bytes::Buf;
use prost::{DecodeError, Message};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

pub(super) struct Lenient<Call, Answer>(PhantomData<(Call, Answer)>);

impl<Call, Answer> Default for Lenient<Call, Answer> {
    fn default() -> Self {
        Lenient(PhantomData)
    }
}

impl<Call, Answer> Codec for Lenient<Call, Answer>
where
    Call: Message + 'static,
    Answer: Message + Default + 'static,
{
    type Encode = Call;
    type Decode = Result<Answer, DecodeError>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Lenient(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Lenient(PhantomData)
    }
}

impl<Call: Message, Answer> Encoder for Lenient<Call, Answer> {
    type Item = Call;
    type Error = Status;

    fn encode(&mut self, call: Call, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        call.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<Call, Answer: Message + Default> Decoder for Lenient<Call, Answer> {
    type Item = Result<Answer, DecodeError>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        // The whole message: tonic would take the rest for the next frame.
        let message = buffer.copy_to_bytes(buffer.remaining());
        Ok(Some(Answer::decode(message)))
    }
}
