"""How an adapter reaches the submit host of its WMS: here (`local`), over SSH (`ssh`), or scripted for tests."""
