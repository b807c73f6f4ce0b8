from proxy.cli.commands import main

main()
