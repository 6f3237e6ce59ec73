"""Speaks CRI for the tests: a line of JSON in (method, request), a line out (ok or error).

cri.py DESCRIPTORS SOCKET SECONDS; DESCRIPTORS is what `protoc --descriptor_set_out` makes of cri.proto, SECONDS what a call
may take.
"""

import json
import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

with open(sys.argv[1], "rb") as file:
    files = descriptor_pb2.FileDescriptorSet.FromString(file.read()).file
pool = descriptor_pool.DescriptorPool()
for file in files:
    pool.Add(file)
factory = message_factory.MessageFactory(pool)
methods = {
    method.name: (f"/runtime.v1.{service.name}/{method.name}", method.input_type[1:], method.output_type[1:])
    for service in files[0].service
    for method in service.method
}
channel = grpc.insecure_channel(f"unix://{sys.argv[2]}")

for line in sys.stdin:
    name, request = json.loads(line)
    path, takes, gives = methods[name]
    takes, gives = (factory.GetPrototype(pool.FindMessageTypeByName(type)) for type in (takes, gives))
    call = channel.unary_unary(path, takes.SerializeToString, gives.FromString)
    try:
        answer = call(json_format.ParseDict(request, takes()), timeout=int(sys.argv[3]), wait_for_ready=True)
        answer = {"ok": json_format.MessageToDict(answer, preserving_proto_field_name=True)}
    except grpc.RpcError as error:
        answer = {"error": error.details()}
    print(json.dumps(answer), flush=True)
