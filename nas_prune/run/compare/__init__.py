"""Methods side by side: from one dense network, at one cost, in as many epochs, over several seeds."""
