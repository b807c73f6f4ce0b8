// Runs Runpod's Go client in its own process: makes every call and prints the results. The base URL is its
// argument, the inputs are read as JSON from standard input. The Python counterpart is runpod_client.py.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/runpod/go-sdk/pkg/sdk"
	"github.com/runpod/go-sdk/pkg/sdk/config"
	"github.com/runpod/go-sdk/pkg/sdk/endpoint"
)

type inputs map[string]map[string]interface{}

type report map[string]interface{}

func main() {
	var given inputs
	must(json.NewDecoder(os.Stdin).Decode(&given))
	client, err := endpoint.New(
		&config.Config{ApiKey: sdk.String("one")},
		&endpoint.Option{EndpointId: sdk.String("default"), EndpointUrl: &os.Args[1]},
	)
	must(err)
	found := report{}
	ask(client, given, found)
	text, err := json.Marshal(found)
	must(err)
	fmt.Println("RESULT " + string(text))
}

func ask(client *endpoint.Endpoint, given inputs, found report) {
	health, err := client.Health(&endpoint.HealthInput{})
	found.note("health", health, err)
	for _, name := range []string{"plain", "bad"} {
		ended, err := client.RunSync(&endpoint.RunSyncInput{JobInput: job(given[name]), Timeout: sdk.Int(30)})
		found.note("runSync "+name, ended, err)
	}
	slow, err := client.RunSync(&endpoint.RunSyncInput{JobInput: job(given["slow"]), Timeout: sdk.Int(1)})
	found.note("runSync slow", slow, err)

	run, err := client.Run(&endpoint.RunInput{JobInput: job(given["plain"])})
	found.note("run", run, err)
	waited, err := client.StatusSync(&endpoint.StatusSyncInput{Id: run.Id, Timeout: sdk.Int(30)})
	found.note("statusSync", waited, err)
	status, err := client.Status(&endpoint.StatusInput{Id: run.Id})
	found.note("status", status, err)

	streaming, err := client.Run(&endpoint.RunInput{JobInput: job(given["stream"])})
	must(err)
	pieces, err := stream(client, streaming.Id)
	found.note("stream", pieces, err)

	long, err := client.Run(&endpoint.RunInput{JobInput: job(given["long"])})
	must(err)
	cancelled, err := client.Cancel(&endpoint.CancelInput{Id: long.Id})
	found.note("cancel", cancelled, err)
	_, err = stream(client, long.Id)
	found.note("stream of the cancelled", "ended", err)
	purged, err := client.PurgeQueue(&endpoint.PurgeQueueInput{})
	found.note("purge", purged, err)
	_, err = client.Status(&endpoint.StatusInput{Id: sdk.String("nonsense")})
	found.note("nonsense", nil, err)
}

// stream returns every element of a job's output.
func stream(client *endpoint.Endpoint, id *string) ([]endpoint.StreamResult, error) {
	results := make(chan endpoint.StreamResult)
	pieces := make(chan []endpoint.StreamResult)
	go func() {
		all := []endpoint.StreamResult{}
		for one := range results { // the client closes it
			all = append(all, one)
		}
		pieces <- all
	}()
	err := client.Stream(&endpoint.StreamInput{Id: id, Timeout: sdk.Int(30)}, results)
	return <-pieces, err
}

func job(input map[string]interface{}) *endpoint.JobInput {
	return &endpoint.JobInput{Input: input, Policy: &endpoint.Policy{TTL: sdk.Int(60000)}}
}

func (found report) note(name string, value interface{}, err error) {
	if err != nil {
		value = "error: " + err.Error()
	}
	found[name] = value
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
