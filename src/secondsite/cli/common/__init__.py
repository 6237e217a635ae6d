"""What commands share: ways to gateways and servers, words that become values, tables and sentences."""
