// A client in Go: sends every message through gRPC's codec and back, then registers with the NLB at the given
// address.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/marchproxy/marchproxy/proto/marchproxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

func main() {
	log.SetFlags(0)
	for _, pass := range []func() error{everyMessagePasses, register} {
		if err := pass(); err != nil {
			log.Fatal(err)
		}
	}
}

func everyMessagePasses() error {
	codec, messages := encoding.GetCodec("proto"), 0
	var failed error
	protoregistry.GlobalTypes.RangeMessages(func(kind protoreflect.MessageType) bool {
		if kind.Descriptor().ParentFile().Package() != "marchproxy" || kind.Descriptor().IsMapEntry() {
			return true
		}
		sent, received := kind.New(), kind.New().Interface()
		fill(sent)
		bytes, err := codec.Marshal(sent.Interface())
		if err == nil {
			err = codec.Unmarshal(bytes, received)
		}
		if err == nil && !proto.Equal(sent.Interface(), received) {
			err = fmt.Errorf("sent %v, received %v", sent, received)
		}
		if err != nil {
			failed = fmt.Errorf("%s: %w", kind.Descriptor().FullName(), err)
		}
		messages++
		return failed == nil
	})
	if failed == nil && messages == 0 {
		return fmt.Errorf("no message is registered")
	}
	return failed
}

// fill sets every field, and those of messages within.
func fill(message protoreflect.Message) {
	fields := message.Descriptor().Fields()
	for i := 0; i < fields.Len(); i++ {
		field := fields.Get(i)
		switch {
		case field.IsMap():
			entries := message.Mutable(field).Map()
			entry := entries.NewValue()
			if field.MapValue().Message() != nil {
				fill(entry.Message())
			} else {
				entry = scalar(field.MapValue())
			}
			entries.Set(scalar(field.MapKey()).MapKey(), entry)
		case field.IsList() && field.Message() != nil:
			fill(message.Mutable(field).List().AppendMutable().Message())
		case field.IsList():
			message.Mutable(field).List().Append(scalar(field))
		case field.Message() != nil:
			fill(message.Mutable(field).Message())
		default:
			message.Set(field, scalar(field))
		}
	}
}

func scalar(field protoreflect.FieldDescriptor) protoreflect.Value {
	switch field.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(-7)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(-7)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(0.5)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("text")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("bytes"))
	}
	panic(fmt.Sprintf("%s has a kind that this client does not know: %s", field.FullName(), field.Kind()))
}

func register() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	channel, err := grpc.DialContext(ctx, os.Args[1], grpc.WithInsecure(), grpc.WithBlock(), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	nlb := marchproxy.NewNLBServiceClient(channel)
	answer, err := nlb.RegisterModule(ctx, &marchproxy.RegisterModuleRequest{
		Instance: &marchproxy.ModuleInstance{
			InstanceId: "go-1", ModuleType: marchproxy.ModuleType_MODULE_TYPE_ALB, Address: "10.0.0.1:50051", Version: "v1",
		},
		InitialRoutes: []*marchproxy.Route{{
			RouteId: "web", Protocol: marchproxy.Protocol_PROTOCOL_TCP, DestinationPattern: "192.0.2.1", DestinationPort: 80,
		}},
	})
	if err != nil {
		return err
	}
	beat, err := nlb.Heartbeat(ctx, &marchproxy.HeartbeatRequest{
		InstanceId: "go-1", RegistrationId: answer.RegistrationId, Status: marchproxy.HealthStatus_HEALTH_STATUS_HEALTHY,
	})
	if err != nil {
		return err
	}
	listed, err := nlb.ListModules(ctx, &marchproxy.ListModulesRequest{})
	if err != nil {
		return err
	}
	for _, module := range listed.Modules {
		fmt.Println(module.InstanceId, module.HealthStatus, beat.Acknowledged)
	}
	return nil
}
